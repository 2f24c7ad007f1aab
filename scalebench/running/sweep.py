"""Run a study: find the trials without a result, run them with an engine, collect the records."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from scalebench import store
from scalebench.errors import InputError, expect, number_of
from scalebench.measure.contention import others_limit
from scalebench.measure.environment import code_fingerprint, command_line
from scalebench.measure.hardware import NOMINAL_FLOPS_PER_S
from scalebench.running.attempts import Attempts, resources_of
from scalebench.running.claims import Observer, driving, last_claim
from scalebench.running.dials import dials_of
from scalebench.running.engines import find_engine
from scalebench.running.engines.base import Tick, no_tick
from scalebench.running.ensembles import grouped
from scalebench.running.planning import PlannedTrial, plan
from scalebench.store.plans import joined_plans, replaced_plan
from scalebench.study import Study
from scalebench.workloads import WORKLOADS, columns_of
from scalebench.workloads.checkpoints import has_checkpoints

WAIT_S = 0.2  # between looks at trials that another driver runs


@dataclass(repr=False)
class Sweep:
    """State and outcome of a run. ``rows`` maps the ids of planned trials to their latest records, if any.

    ``claims`` has the number of the last claim of each trial, read before its record.
    """

    study_dir: Path
    planned: list[PlannedTrial]
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    executed: int = 0
    other_code: int = 0
    claims: dict[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> list[PlannedTrial]:
        """The planned trials without a record."""
        return [trial for trial in self.planned if trial.trial_id not in self.rows]

    def statuses(self) -> Counter[str]:
        """Count the planned trials by status, those without a record as missing."""
        counts = Counter(str(row["status"]) for row in self.rows.values())
        return counts + Counter({"missing": len(self.missing)})

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses().items())
        return (
            f"Sweep in {self.study_dir}: {number_of(len(self.planned), 'trial')} ({counts}), {self.executed} executed"
        )


def survey(study: Study, results: Path, retry: Sequence[str] = (), *, fresh_code: bool = False) -> Sweep:
    """Plan the study and read the existing records.

    Trials with a status in ``retry`` count as missing; with ``fresh_code``, those run by other code do as well.
    Raises ``StoreError`` where symbolic links lead out of the results, or a newer version wrote them.
    """
    for folder in (results / study.name, results / study.name / "trials", results / study.name / "drivers"):
        store.check_inside(results, folder)
    sweep = Sweep(results / study.name, plan(study, results))
    store.read_study(sweep.study_dir, [])  # of a newer version: refused before anything starts
    fingerprint = code_fingerprint()

    def counts(row: Mapping[str, Any]) -> bool:
        other = row.get("code_fingerprint") not in (fingerprint, None)
        return not (row["status"] in retry or _unsaved(row, study) or (other and fresh_code))

    indexed = store.latest_records(sweep.study_dir, [trial.trial_id for trial in sweep.planned], sweep.damaged)
    for trial in sweep.planned:
        row = indexed.get(trial.trial_id)
        if row is None or not counts(row):
            row = _latest_record(sweep, trial.trial_id)
        if row is not None and counts(row):
            sweep.other_code += row.get("code_fingerprint") not in (fingerprint, None)
            sweep.rows[trial.trial_id] = row
    sweep.damaged = [*dict.fromkeys(sweep.damaged)]
    return sweep


def _latest_record(sweep: Sweep, trial_id: str) -> dict[str, Any] | None:
    """Read a trial's latest record, and before it the number of its last claim."""
    trial_dir = sweep.study_dir / "trials" / trial_id
    if claim := last_claim(trial_dir):
        sweep.claims[trial_id] = claim.number if claim.settled else claim.number - 1
    row, damaged = store.latest_record(trial_dir)
    sweep.damaged.extend(damaged)
    return row


def _unsaved(row: Mapping[str, Any], study: Study) -> bool:
    """Whether an ok trial lacks files that [run] now asks for: it ran with other settings, or an older version."""
    if row["status"] != "ok":
        return False
    if study.run.checkpoint_steps and not has_checkpoints(Path(row["attempt_dir"]), study.run.checkpoint_steps):
        return True
    workload = WORKLOADS.get(str(row.get("workload"))) if study.run.checkpoint else None
    return workload is not None and any(row.get(name) is None for name in workload.KEEPS)


def execute(
    sweep: Sweep,
    study: Study,
    *,
    jobs: int | None = None,
    engine: str = "local",
    slots: int | None = None,
    order: str = "auto",
    tick: Tick = no_tick,
) -> Generator[dict[str, Any]]:
    """Run what is missing with an engine, yielding each trial's record as it comes.

    ``order`` is "given", "cheapest" or "largest" by predicted cost, or "auto": the engine decides. A trial that another
    driver runs is waited for, and yielded as well. ``tick`` is called often with the attempts that are running. Closing
    the iterator stops the workers; their trials count as missing again. Raises ``InputError`` for an unknown engine,
    for one that cannot run the trials, and for a SCALEBENCH_OTHERS_LIMIT that is no number.
    """
    placing = find_engine(engine, slots)
    others_limit()  # refused now rather than by each trial at its end
    if missing := sweep.missing:
        placing.check([resources_of(planned, study) for planned in missing])
    save_study(sweep, study)
    pending = {planned.trial_id: planned for planned in sweep.missing}
    if not pending:
        return
    with driving(sweep.study_dir) as driver:
        observer = Observer(sweep.study_dir)
        while pending:
            rows, free = _new_records(sweep, pending, observer)
            attempts = Attempts(sweep.study_dir, study, sweep.planned, driver, keep_order=order != "auto")
            coming = {trial.planned.trial_id: trial for trial in in_order(free, order)}
            for ids in grouped((trial.planned for trial in coming.values()), study, engine).batches:
                attempts.add_batch([coming[trial_id] for trial_id in ids])
            own_rows = _records(sweep, attempts.run(partial(placing.place, jobs=jobs), tick))
            for row in chain(rows, own_rows):
                del pending[row["trial_id"]]
                yield row
            if pending and not free:  # other drivers run them
                tick([])
                time.sleep(WAIT_S)


class Free(NamedTuple):
    """A trial that no driver runs, and the number of its next claim: the first driver to claim it gets the trial.

    ``orphan`` is the attempt of a driver that has ended, if it had no record when this was read.
    """

    planned: PlannedTrial
    claim: int
    orphan: Path | None


def _new_records(
    sweep: Sweep, pending: Mapping[str, PlannedTrial], observer: Observer
) -> tuple[list[dict[str, Any]], list[Free]]:
    """Return the records of trials that other drivers have run since the survey, and the trials that no driver runs."""
    rows, free = [], []
    for trial_id, planned in pending.items():
        claim = last_claim(sweep.study_dir / "trials" / trial_id)
        alive = claim is not None and observer.alive(claim.driver)  # first: a driver may write the record and end
        settled = claim is not None and claim.settled
        if alive and not settled:
            continue
        if claim and settled and claim.number > sweep.claims.get(trial_id, 0):
            with contextlib.suppress(store.StoreError):  # damaged: it is run again
                rows.append(store.read_record(claim.attempt))
                sweep.rows[trial_id] = rows[-1]
                continue
        orphan = claim.attempt if claim and not settled else None
        free.append(Free(planned, 1 + (claim.number if claim else 0), orphan))
    return rows, free


def _records(sweep: Sweep, finished: Iterator[Sequence[Path]]) -> Iterator[dict[str, Any]]:
    """Yield the records of attempts that this driver has run; those of a batch count together."""
    for batch in finished:
        rows = [store.read_record(attempt) for attempt in batch]
        sweep.rows |= {row["trial_id"]: row for row in rows}
        sweep.executed += len(rows)
        yield from rows


def in_order(free: Sequence[Free], order: str) -> list[Free]:
    """Return trials in the order to start them."""
    if order in ("auto", "given"):
        return list(free)
    return sorted(free, key=lambda trial: trial.planned.seconds(NOMINAL_FLOPS_PER_S["cpu"]), reverse=order == "largest")


def run(study: Study, results: str | Path = "results", *, jobs: int | None = None, engine: str = "local") -> Sweep:
    """Run the missing trials of a study and return all of them: ``rows`` by trial id.

    ``jobs`` limits the workers that run at a time. ``engine`` is a name in ``running.engines.ENGINES``. Raises
    ``InputError`` for an unknown engine or no workers, ``StoreError`` when the folder cannot be written.
    """
    expect(study, Study, "run: expected a study, as load_study(...) returns it")
    expect(results, str | Path, "run: expected the path of a results folder")
    expect(jobs, int | None, "run: jobs is a whole number")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: at least one worker is needed (given {jobs})")
    find_engine(engine)
    sweep = survey(study, Path(results))
    store.check_writable(Path(results))
    for _ in execute(sweep, study, jobs=jobs, engine=engine):
        pass
    return sweep


def save_study(sweep: Sweep, study: Study) -> None:
    """Save with the results what a report needs from the study: axes, plan, fit, command.

    A run without missing trials keeps the command that made the results. Runs of one file with other ``--set`` values
    add to the plan; an edited file, or other data, replaces it: the trials of the earlier plan are remembered apart.
    """
    content: dict[str, Any] = {
        "schema": store.SCHEMA,
        "name": study.name,
        "title": study.title or study.name,
        "fields": {name.partition(".")[2]: list(values) for name, values in study.axes().items()},
        "fit": study.fit.model_dump(mode="json") | {"best_over": list(study.tuned)},
        "planned": [{"trial_id": trial.trial_id, "flops": trial.flops} for trial in sweep.planned],
        "inputs": inputs_of(sweep.planned),
        "dials": dials_of(sweep.planned),
        "study_toml": study.text,
        "workload": study.workload,
        "columns": [asdict(column) for column in columns_of(study.workload)],
        "measured": [column.name for column in WORKLOADS[study.workload].COLUMNS],
    }
    sweep.study_dir.mkdir(parents=True, exist_ok=True)
    with store.changing_study(sweep.study_dir):
        _replace_study(sweep, study, content)


def _replace_study(sweep: Sweep, study: Study, content: dict[str, Any]) -> None:
    """Write ``study.json`` with this content and what it remembers of the plans before."""
    before = store.read_study(sweep.study_dir, sweep.damaged)
    # Without "fields" it was written when trials had other ids: its plan would count the same trials twice.
    if "fields" in before:
        same = same_file(before.get("study_toml", ""), study.text) and same_inputs(
            before.get("inputs"), content["inputs"]
        )
        content = (joined_plans if same else replaced_plan)(before, content)
    axes = {name: values for name, values in content["fields"].items() if len(values) > 1}
    command = command_line() if sweep.missing else before.get("command", command_line())
    store.write_study(sweep.study_dir, content | {"axes": axes, "command": command})


def inputs_of(planned: Sequence[PlannedTrial]) -> dict[str, str]:
    """Return the SHA-256 of what the trials read: of each data source, and of each parent's weights."""
    inputs = {}
    for trial in planned:
        data = trial.trial.data
        inputs[f"{data.source} {data.vocab_size or ''}".strip()] = data.sha256
        if trial.trial.family_sha256 is not None:
            inputs[trial.trial.family] = trial.trial.family_sha256
        if trial.parent is not None:
            inputs[f"weights of {trial.parent.trial_id}"] = trial.parent.identity.weights_sha256
    return inputs


def same_inputs(earlier: Any, inputs: Mapping[str, str]) -> bool:
    """Whether no input has changed since an earlier run, as far as that is known."""
    known = earlier if isinstance(earlier, dict) else {}
    return all(known.get(name, sha256) == sha256 for name, sha256 in inputs.items())


def same_file(earlier: str, text: str) -> bool:
    """Whether two texts of a study come from the same file, whatever ``--set`` changed (see ``Study.text``)."""
    texts = [[line for line in content.splitlines() if not line.startswith("# --set ")] for content in (earlier, text)]
    return bool(text) and texts[0] == texts[1]
