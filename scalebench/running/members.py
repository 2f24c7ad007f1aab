"""Attempts at several trials by one worker, which trains them together.

The worker is that of the first, the lead (``batches.py``). Each trial has its own folder, claim and record. The lead's
record is written last: a worker that ends before writing all records has not written the lead's.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.running.batches import members_of
from scalebench.running.engines.base import close_attempt, has_record
from scalebench.store import StoreError, read_header, read_record, write_json

if TYPE_CHECKING:
    from scalebench.study import Trial
    from scalebench.workloads.recorder import Recorder


def close_members(lead: Path, others: Sequence[Path]) -> None:
    """Close the attempts of a batch whose worker has ended without their records, with the status of their lead."""
    row = read_record(lead)
    for attempt in others:
        if not has_record(attempt):
            message = f"trained together with {lead.parent.name}: {row['error_message']}"
            ended_well = row["status"] == "ok"  # but this trial's record could not be written
            close_attempt(attempt, "failed" if ended_well else row["status"], row["error_class"] or "NoRecord", message)


# --- in the worker ---------------------------------------------------------------------------------------------------


def run_members(
    lead: Path,
    placement: dict[str, Any],
    start: Callable[[Path, dict[str, Any], dict[str, Any]], tuple[Trial, Recorder]],
    end: Callable[[Trial, Recorder, Exception | None], str],
) -> list[tuple[Path, str]]:
    """Run the trials of a batch in this process and return each attempt with its status, the lead's last.

    ``start(attempt, header, placement)`` returns a trial with its recorder, ``end(trial, recorder, error)`` writes its
    record and returns its status.
    """
    from scalebench.workloads.ensemble_run import train_together

    attempts, statuses = members_of(lead), []
    shared = placement | {"exclusive": False, "lead": lead.parent.name}  # which has the logs
    members = []
    for attempt in attempts:
        write_json(attempt / "placement.json", shared)
        members.append(start(attempt, read_header(attempt), shared))
    of_lead: list[Exception | None] = []

    def ended(index: int, error: Exception | None) -> None:
        if index == 0:
            of_lead.append(error)
            return
        try:
            statuses.append((attempts[index], end(*members[index], error)))
        except (OSError, StoreError) as unwritten:  # its folder was removed, or the disk is full: the others go on
            traceback.print_exception(unwritten)
            statuses.append((attempts[index], "failed"))  # ``close_members`` writes its record, if it can

    train_together(members, ended)
    return [*statuses, (lead, end(*members[0], of_lead[0]))]
