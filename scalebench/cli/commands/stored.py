"""The commands `status`, `report` and `export`: reading a results folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalebench import store
from scalebench.cli.commands.watch import running_trials
from scalebench.cli.counted import counted
from scalebench.cli.output import print_json, say, table, trials, warn
from scalebench.running.claims import Observer
from scalebench.running.engines.slurm import waiting
from scalebench.store.comparisons import Comparisons, latest, read_comparisons, went_wrong

MOST_ALIKE = 10  # failures of one kind that are all listed


def show_status(results: Path, *, as_json: bool) -> int:
    """Print the status of each study; return exit code 1 if a trial is missing or did not end ok."""
    stored = store.read_results(results)
    folders = {folder.name: folder for folder in store.study_dirs(results)}
    counts = {name: _study_counts(stored, name, folders[name]) for name in stored.studies}
    queued = {name: dict(states) for name, folder in folders.items() if (states := waiting(folder))}
    compared = read_comparisons(results)
    failed = stored.frame[stored.frame["status"] != "ok"]
    failed = failed[["study", "trial_id", "status", "stop_step", "error_class", "error_message"]]
    if as_json:
        not_ok = json.loads(failed.to_json(orient="records"))
        damaged = [*stored.damaged, *compared.damaged]
        print_json(
            {
                "studies": counts,
                "queued": queued,
                "comparisons": _counts(compared),
                "not_ok": not_ok,
                "damaged": damaged,
            }
        )
    else:
        names = [*store.STATUSES, "running", "missing"]
        used = [name for name in names if any(count.get(name) for count in counts.values())]
        rows = [(study, *(str(count.get(name, 0)) for name in used)) for study, count in counts.items()]
        if rows:
            table(str(results), ("study", *used), rows)
        reasons = (
            f"{row.study!s}/{row.trial_id!s} {row.status!s}: {row.error_message or row.error_class!s}"
            for row in failed.itertuples(index=False)
        )
        say(*counted(reasons, MOST_ALIKE))
        say(*(f"{name} in Slurm's queue: {_counted(states)}" for name, states in queued.items()))
        say(*_comparison_lines(compared))
        damaged = counted([*stored.damaged, *compared.damaged])
        say(*(f"damaged, counts as missing: {line}" for line in damaged))
    complete = all(set(count) <= {"ok"} for count in counts.values()) and went_wrong(latest(compared.frame)).empty
    return 0 if complete and not stored.damaged and not compared.damaged else 1


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _counts(compared: Comparisons) -> dict[str, dict[str, int]]:
    """Count each compared operation's newest rows by status."""
    return {
        str(name): {str(status): int(count) for status, count in part["status"].value_counts().items()}
        for name, part in latest(compared.frame).groupby("operation")
    }


def _comparison_lines(compared: Comparisons) -> list[str]:
    lines = [
        f"comparison {name}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
        for name, counts in _counts(compared).items()
    ]
    for row in went_wrong(latest(compared.frame)).itertuples():
        why = row.error_message if row.status != "ok" else f"wrong: {row.error_note!s}"
        lines.append(f"{row.operation!s}/{row.case!s} {row.provider!s} {row.status!s}: {why!s}")
    return lines


def _study_counts(stored: store.Results, name: str, folder: Path) -> dict[str, int]:
    """Count a study's trials by status; those that are run again now count by the result that they have."""
    rows = stored.frame[stored.frame["study"] == name]
    planned = {trial["trial_id"] for trial in stored.studies[name].get("planned", [])}
    counts = Counter(str(status) for status in rows["status"])
    without = tuple(planned - set(rows["trial_id"]))
    running = len(running_trials(folder, Observer(folder), without))
    more = {"running": running, "missing": len(without) - running}
    return dict(counts) | {status: count for status, count in more.items() if count}


def write_report(results: Sequence[Path], output: Path, *, pictures: bool) -> int:
    """Write the page, and with ``pictures`` a PNG named after each study beside it."""
    from scalebench.analysis.study import analyse_all, damaged_elsewhere
    from scalebench.reporting import picture, write

    stored = store.read_results(*results)
    studies = analyse_all(stored)
    say(str(write(studies, output, damaged_elsewhere(stored), read_comparisons(*results))))
    for study in studies if pictures else ():
        say(str(picture(study, output.with_name(f"{study.name}.png"))))
    return 0


def export_table(results: Path, output: Path) -> int:
    """Write the table of all trials; damaged attempts are reported on stderr and left out.

    Rows of comparisons have other columns: they get a second file beside it, or the file itself if there are no trials.
    """
    stored = store.read_results(results)
    for line in counted(stored.damaged):
        warn(f"damaged, left out: {line}")
    compared = read_comparisons(results).frame
    if len(stored.frame) or compared.empty:
        store.export(stored, output)
        say(f"{output}: {trials(len(stored.frame))}")
        output = output.with_name(f"{output.stem}-comparisons{output.suffix}")
    if len(compared):
        store.write_table(compared, output)
        say(f"{output}: {len(compared)} rows of comparisons")
    return 0
