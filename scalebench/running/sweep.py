"""Run a study: find the trials without a result, run them with an engine, collect the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scalebench import store
from scalebench.errors import InputError
from scalebench.measure.environment import code_fingerprint, command_line
from scalebench.measure.hardware import NOMINAL_FLOPS_PER_S
from scalebench.running.engines import find_engine
from scalebench.running.engines.base import Resources, Tick, no_tick
from scalebench.running.planning import PlannedTrial, plan, trial_header
from scalebench.store.plans import joined_plans
from scalebench.study import Study
from scalebench.workloads import WORKLOADS, columns_of
from scalebench.workloads.checkpoints import has_checkpoints


@dataclass
class Sweep:
    """State and outcome of a run. ``rows`` maps the ids of planned trials to their latest records, if any."""

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
    """Plan the study and read the existing records.

    Trials with a status in ``retry`` count as missing; with ``fresh_code``, those run by other code do as well.
    """
    sweep = Sweep(results / study.name, plan(study, results))
    fingerprint = code_fingerprint()
    for trial in sweep.planned:
        row, damaged = store.latest_record(sweep.study_dir / "trials" / trial.trial_id)
        sweep.damaged.extend(damaged)
        if row is None or row["status"] in retry or (study.run.checkpoint and _unsaved(row)):
            continue
        if row["status"] == "ok" and not has_checkpoints(Path(row["attempt_dir"]), study.run.checkpoint_steps):
            continue
        other = row["code_fingerprint"] not in (fingerprint, None)
        if other and fresh_code:
            continue
        sweep.other_code += other
        sweep.rows[trial.trial_id] = row
    return sweep


def _unsaved(row: Mapping[str, Any]) -> bool:
    """Whether an ok trial lacks something that ``run.checkpoint`` saves: it ran without, or before that was saved."""
    saves = WORKLOADS[str(row["workload"])].KEEPS
    return row["status"] == "ok" and any(row.get(name) is None for name in saves)


def execute(
    sweep: Sweep, study: Study, *, jobs: int | None = None, engine: str = "local", tick: Tick = no_tick
) -> Iterator[dict[str, Any]]:
    """Run what is missing with an engine, yielding each trial's record as it comes.

    ``tick`` is called often with the attempts that are running. Closing the iterator stops the workers; their trials
    count as missing again. Raises ``InputError`` for an unknown engine.
    """
    placing = find_engine(engine)
    missing = sweep.missing
    save_study(sweep, study)
    if not missing:
        return
    precisions = sorted({planned.trial.spec.precision for planned in sweep.planned})
    needs = [resources_of(planned, study) for planned in missing]
    attempts = [
        _prepare(sweep.study_dir, study, planned, resources, precisions)
        for planned, resources in zip(missing, needs, strict=True)
    ]
    for attempt in placing.place(attempts, needs, jobs=jobs, tick=tick):
        row = store.read_record(attempt)
        sweep.rows[row["trial_id"]] = row
        sweep.executed += 1
        yield row


def resources_of(planned: PlannedTrial, study: Study) -> Resources:
    """Return what a planned trial needs of the machine that runs it."""
    device_kind = planned.trial.device_kind
    return Resources(
        gpus=int(device_kind == "cuda"),
        memory_bytes=planned.memory_bytes,
        timeout_s=study.run.timeout_s,
        expected_s=planned.seconds(NOMINAL_FLOPS_PER_S[device_kind]),
        share_device=study.run.share_device,
    )


def run(study: Study, results: str | Path = "results", *, jobs: int | None = None, engine: str = "local") -> Sweep:
    """Run the missing trials of a study and return all of them: ``rows`` by trial id.

    ``jobs`` limits the workers that run at a time. ``engine`` is a name in ``running.engines.ENGINES``. Raises
    ``InputError`` for an unknown engine or no workers, ``StoreError`` when the folder cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: at least one worker is needed (given {jobs})")
    find_engine(engine)
    store.check_writable(Path(results))
    sweep = survey(study, Path(results))
    for _ in execute(sweep, study, jobs=jobs, engine=engine):
        pass
    return sweep


def save_study(sweep: Sweep, study: Study) -> None:
    """Save with the results what a report needs from the study: axes, plan, fit, command.

    A run without missing trials keeps the command that made the results. Runs of one file with other ``--set`` values
    add to the plan; an edited file replaces it.
    """
    content: dict[str, Any] = {
        "schema": store.SCHEMA,
        "name": study.name,
        "title": study.title or study.name,
        "fields": {name.partition(".")[2]: list(values) for name, values in study.axes().items()},
        "fit": study.fit.model_dump(mode="json"),
        "planned": [{"trial_id": trial.trial_id} for trial in sweep.planned],
        "study_toml": study.text,
        "workload": study.workload,
        "columns": [asdict(column) for column in columns_of(study.workload)],
        "measured": [column.name for column in WORKLOADS[study.workload].COLUMNS],
    }
    before = store.read_study(sweep.study_dir, sweep.damaged)
    # Without "fields" it was written when trials had other ids: its plan would count the same trials twice.
    if "fields" in before and same_file(before.get("study_toml", ""), study.text):
        content = joined_plans(before, content)
    axes = {name: values for name, values in content["fields"].items() if len(values) > 1}
    command = command_line() if sweep.missing else before.get("command", command_line())
    sweep.study_dir.mkdir(parents=True, exist_ok=True)
    store.write_json(sweep.study_dir / "study.json", content | {"axes": axes, "command": command})


def same_file(earlier: str, text: str) -> bool:
    """Whether two texts of a study come from the same file, whatever ``--set`` changed (see ``Study.text``)."""
    texts = [[line for line in content.splitlines() if not line.startswith("# --set ")] for content in (earlier, text)]
    return bool(text) and texts[0] == texts[1]


def _prepare(
    study_dir: Path, study: Study, planned: PlannedTrial, resources: Resources, precisions: Sequence[str]
) -> Path:
    """Make an attempt folder with its ``trial.json``. ``precisions`` are those of the whole study, see ``node.py``."""
    attempt = store.new_attempt(study_dir, planned.trial_id)
    placing = {"precisions": list(precisions), "resources": asdict(resources)}
    store.write_json(attempt / "trial.json", trial_header(study, planned, command_line()) | placing)
    return attempt
