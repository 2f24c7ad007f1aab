"""Run a study: find what is missing, place it, say how it goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scalebench import store
from scalebench.measure.environment import code_fingerprint, command_line
from scalebench.measure.hardware import device_peak
from scalebench.running.engines import local
from scalebench.running.planning import PlannedTrial, plan, trial_header
from scalebench.study import Study
from scalebench.workloads import columns_of


@dataclass
class Sweep:
    """What a run found and did. ``rows`` maps each planned trial's id to its latest record, as far as there is one."""

    study_dir: Path
    planned: list[PlannedTrial]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    executed: int = 0
    other_code: int = 0

    @property
    def missing(self) -> list[PlannedTrial]:
        """The planned trials without a record."""
        return [trial for trial in self.planned if trial.trial_id not in self.rows]

    def statuses(self) -> Counter[str]:
        """Count the planned trials by status, those without a record as missing."""
        counts = Counter(str(row["status"]) for row in self.rows.values())
        return counts + Counter({"missing": len(self.missing)})


def survey(study: Study, results: Path, retry: Sequence[str] = (), *, fresh_code: bool = False) -> Sweep:
    """Plan the study and look up what is already there; ``retry`` statuses, and other code's rows, count as missing."""
    sweep = Sweep(results / study.name, plan(study, results))
    fingerprint = code_fingerprint()
    for trial in sweep.planned:
        row, damaged = store.latest_record(sweep.study_dir / "trials" / trial.trial_id)
        sweep.damaged.extend(damaged)
        if row is None or row["status"] in retry or (study.run.checkpoint and _unsaved(row)):
            continue
        other = row["code_fingerprint"] not in (fingerprint, None)
        if other and fresh_code:
            continue
        sweep.other_code += other
        sweep.rows[trial.trial_id] = row
    return sweep


def _unsaved(row: Mapping[str, Any]) -> bool:
    """Say whether a trial that could have kept its weights did not."""
    name = "weights_file_bytes"
    keeps = any(column.name == name for column in columns_of(str(row["workload"])))
    return keeps and row["status"] == "ok" and row.get(name) is None


def execute(
    sweep: Sweep, study: Study, *, jobs: int | None = None, tick: Callable[[Sequence[Path]], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Run what is missing, yielding each trial's record as it comes; ``tick`` hears often which attempts are running.

    Closing the iterator stops the workers; what they were at counts as missing again.
    """
    missing = sweep.missing
    _save_study(sweep, study)
    if not missing:
        return
    slots = _slots(missing, jobs, share_device=study.run.share_device)
    attempts = [_prepare(sweep.study_dir, study, trial) for trial in _in_order(missing, slots)]
    for attempt in local.place(attempts, slots, study.run.timeout_s, tick):
        row = store.read_record(attempt)
        sweep.rows[row["trial_id"]] = row
        sweep.executed += 1
        yield row


def run(study: Study, results: str | Path = "results", *, jobs: int | None = None) -> Sweep:
    """Run what is missing of a study under ``results`` and return what is there: ``rows`` by trial id.

    Raises ``StoreError`` when the folder cannot be written.
    """
    store.check_writable(Path(results))
    sweep = survey(study, Path(results))
    for _ in execute(sweep, study, jobs=jobs):
        pass
    return sweep


def _save_study(sweep: Sweep, study: Study) -> None:
    """Keep with the results what a report needs of the study: axes, plan, fit, command.

    A run that finds the same study finished leaves the command that made its results.
    """
    axes = {name.partition(".")[2]: list(values) for name, values in study.axes().items() if len(values) > 1}
    content = {
        "schema": store.SCHEMA,
        "name": study.name,
        "title": study.title or study.name,
        "axes": axes,
        "fit": study.fit.model_dump(mode="json"),
        "planned": [{"trial_id": trial.trial_id} for trial in sweep.planned],
        "study_toml": study.text,
        "workload": study.workload,
        "columns": [asdict(column) for column in columns_of(study.workload)],
    }
    before = {} if sweep.missing else store.read_study(sweep.study_dir, sweep.damaged)
    sweep.study_dir.mkdir(parents=True, exist_ok=True)
    store.write_json(sweep.study_dir / "study.json", content | {"command": before.get("command", command_line())})


def _prepare(study_dir: Path, study: Study, planned: PlannedTrial) -> Path:
    attempt = store.new_attempt(study_dir, planned.trial_id)
    store.write_json(attempt / "trial.json", trial_header(study, planned, command_line()))
    return attempt


def _in_order(trials: Sequence[PlannedTrial], slots: Sequence[local.Slot]) -> list[PlannedTrial]:
    """Return trials as they begin: as the study lists them where one runs after another, else the longest first.

    The longest, begun last, would keep one worker waiting for the others.
    """
    if len(slots) == 1 or (_kind(trials) == "cuda" and slots[0].exclusive):
        return list(trials)
    return sorted(trials, key=lambda trial: -trial.flops)


def _kind(trials: Sequence[PlannedTrial]) -> str:
    return "cuda" if any(planned.trial.device_kind == "cuda" for planned in trials) else "cpu"


def _slots(trials: Sequence[PlannedTrial], jobs: int | None, *, share_device: bool = False) -> list[local.Slot]:
    """Return the workers' places: by default one per core on a CPU, and one in all on a GPU.

    Workers on a GPU take turns on it, unless they are to share it: then what they time is not exclusive.
    """
    kind = _kind(trials)
    cores = len(local.usable_cpus())
    count = jobs or (1 if kind == "cuda" else min(cores, len(trials)))
    core_sets = local.core_sets(count)
    exclusive = not share_device if kind == "cuda" else count <= cores
    precisions = sorted({planned.trial.spec.precision for planned in trials})
    peaks = {precision: asdict(device_peak(kind, precision, len(core_sets[0]))) for precision in precisions}
    return [local.Slot(cpus, exclusive, peaks) for cpus in core_sets]
