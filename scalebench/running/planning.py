"""From a study to its trials: names checked, defaults filled in, sizes resolved, costs estimated; nothing built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from scalebench.data import Data, DataError, open_data
from scalebench.errors import InputError, expect
from scalebench.families import FAMILIES, Counts, configure, file_sha256
from scalebench.running.devices import device_kind
from scalebench.running.exclusions import with_exclusions
from scalebench.running.parents import ParentTrial, find_parents, inherited
from scalebench.running.shipped import find_study
from scalebench.running.study_checks import name_lines, parent_lines
from scalebench.study import DataSpec, Study, Trial, trial_id
from scalebench.study.axes import tables_of
from scalebench.study.causes import study_error
from scalebench.study.file import override, parse_study, read_toml
from scalebench.workloads import WORKLOADS, columns_of
from scalebench.workloads.base import Cost, Request, count_columns, unserved
from scalebench.workloads.heads import task_of


@dataclass(frozen=True, repr=False)
class PlannedTrial:
    """A trial, its id, the requested size, its estimated cost, and the parent that it starts from."""

    trial_id: str
    trial: Trial
    requested: Mapping[str, Any]
    counts: Counts
    cost: Cost
    parent: ParentTrial | None = None

    def __repr__(self) -> str:
        """Return one line: the id, the family, the size and the cost."""
        size = f"{self.trial.family}, {self.counts.total:,} parameters"
        return f"PlannedTrial {self.trial_id}: {size}, {self.steps:,} steps, {self.flops:.3g} FLOPs"

    @property
    def steps(self) -> int:
        """Training steps, or calls."""
        return self.cost.steps

    @property
    def flops(self) -> int:
        """FLOPs of the whole trial."""
        return self.cost.flops

    def seconds(self, peak_flops_per_s: float | None) -> float:
        """Estimated duration on a device of this peak."""
        return self.cost.seconds(peak_flops_per_s)

    @property
    def memory_bytes(self) -> int:
        """Estimated peak of the memory."""
        return self.cost.memory_bytes


def load_study(name: str | Path, settings: Sequence[str] = ()) -> Study:
    """Read and check a study file, or one that ships by name; ``settings`` are ``key=value`` overrides.

    Raises ``StudyError`` with every error found at once: types, keys and names, and then also the sizes that a family
    cannot take (``plan`` finds those in a study that is otherwise sound).
    """
    expect(name, str | Path, "load_study: expected the path of a study file, or the name of a study that ships")
    path = find_study(str(name))
    raw = read_toml(path)
    override(raw, settings, WORKLOADS)
    study, lines = parse_study(raw, WORKLOADS)
    if study is not None:
        lines += [*name_lines(study), *parent_lines(study)]
        lines += _size_lines(study, lines) if lines else []
    if study is None or lines:
        raise study_error(str(path), settings, lines, lambda: load_study(path))
    return study.read_from(path, settings)


def _size_lines(study: Study, lines: Sequence[str]) -> list[str]:
    """Return a line for every size that the family cannot take, in a study that has the errors ``lines``.

    A study with parents has their sizes, which ``plan`` looks up; without a family or data there is nothing to size.
    """
    if study.parents is not None or any(line.startswith(("model.family", "data.source")) for line in lines):
        return []
    # A field with a wrong value was left out of the study, and its table counts as incomplete: both are in ``lines``.
    reported = {line.partition(":")[0] for line in lines}
    reported |= {key.partition(".")[0] for key in reported}
    sizes = (line for *_, line in _resolved(study, [None]) if line)
    return [line for line in sizes if line.partition(":")[0] not in reported]


def plan(study: Study, results: str | Path = "results") -> list[PlannedTrial]:
    """Return every trial of the study, in its order, each once; the parents of [from] are looked up under ``results``.

    Raises ``StudyError`` for invalid combinations and parents.
    """
    expect(study, Study, "plan: expected a study, as load_study(...) returns it")
    trials: dict[str, PlannedTrial] = {}
    refused: dict[str, list[Mapping[str, Any]]] = {}
    accepted: list[Mapping[str, Any]] = []
    for planned, point, line in _resolved(study, find_parents(study, Path(results))):
        if planned is None:
            refused.setdefault(line, []).append(point)
        else:
            accepted.append(point)
            trials.setdefault(planned.trial_id, planned)
    lines = with_exclusions(refused, accepted)
    lines += _run_lines(study, trials.values())
    if not trials and not lines:
        lines.append("exclude: every combination is excluded; nothing is left to run")
    if lines:  # seeds and rates have the same ones
        raise study_error(study.origin, study.settings, lines, lambda: plan(load_study(study.origin), results))
    return list(trials.values())


def _records(workload: str, name: str) -> bool:
    """Whether a workload declares a column: its trials can do only what they have a column for."""
    return any(column.name == name for column in WORKLOADS[workload].COLUMNS)


def _run_lines(study: Study, trials: Iterable[PlannedTrial]) -> Iterator[str]:
    """Yield a line for every field of [run] that asks for what the study's trials cannot do."""
    steps, trials, workload = study.run.checkpoint_steps, list(trials), WORKLOADS[study.workload]
    for key in ("checkpoint_every_steps", "checkpoint_every_s"):
        if getattr(study.run, key) and not _records(study.workload, "resumed_from_step"):
            yield f"run.{key}: trials of the workload {study.workload!r} begin anew when interrupted; leave it out"
        elif getattr(study.run, key) and any(getattr(trial.trial.spec, "parallel", "") == "fsdp" for trial in trials):
            yield f'run.{key}: trials with parallel = "fsdp" begin anew when interrupted; use "ddp", or leave it out'
    if steps and any(trial.cost.processes > 1 for trial in trials):
        yield "run.checkpoint_steps: trials of several processes keep no checkpoints; leave it out"
    if steps and "state_sha256" not in workload.KEEPS:
        yield f"run.checkpoint_steps: the workload {study.workload!r} keeps no state to branch from; leave it out"
    elif steps and max(steps) > (shortest := min((trial.steps for trial in trials), default=max(steps))):
        yield f"run.checkpoint_steps: {max(steps)} is beyond the {shortest} steps of the shortest trial"
    if study.run.ensemble is not None and not _records(study.workload, "ensemble_size"):
        able = f"trials of the workload {study.workload!r} run one by one; leave it out"
        yield f"run.ensemble: {able} (given {study.run.ensemble})"


def _resolved(
    study: Study, parents: Sequence[ParentTrial | None]
) -> Iterator[tuple[PlannedTrial | None, Mapping[str, Any], str]]:
    """Yield each point's trial with the point, or None in its place and the reason why it cannot be planned."""
    for parent, point in product(parents, study.points()):
        try:
            yield resolve(study.workload, point, parent), point, ""
        except DataError as error:
            yield None, point, f"data: {error}"
        except InputError as error:
            yield None, point, str(error)


def resolve(workload_name: str, point: Mapping[str, Any], parent: ParentTrial | None = None) -> PlannedTrial:
    """Decide every value of one point: the family's Config, the workload's Spec, the data, the device.

    ``point`` is one of ``Study.points()``. Raises ``InputError`` if it is invalid, ``DataError`` for its data.
    """
    workload = WORKLOADS[workload_name]
    requested, values, data = tables_of(point, "model", workload.TABLE, "data")
    model = dict(requested)
    device = values.pop("device", "auto")
    if parent is not None:
        model, data = inherited(parent, model, data)
    name = model.pop("family")
    requested.pop("family", None)
    source = data.pop("source", FAMILIES[name].DATA)
    opening = (source, data.get("vocab_size"), data["validation_fraction"])
    opened = open_data(*opening)
    about = DataSpec.model_construct(source=source, sha256=opened.sha256, **({"vocab_size": None} | data))
    configure = partial(_configured, name, sha256 := file_sha256(name), tuple(model.items()), opening)
    request = Request(name, values, configure, opened, about, device=device)
    decided = workload.decide(request if parent is None else parent.request(request))
    trial = Trial.model_construct(
        workload=workload_name,
        family=name,
        model={field.name: getattr(decided.config, field.name) for field in fields(decided.config)},
        spec=decided.spec,
        data=about,
        parent=None if parent is None else parent.identity,
        device_kind=device_kind(device),
        family_sha256=sha256,
    )
    if reason := unserved(trial):
        raise InputError(f"model.{reason}; choose another implementation, or exclude the combination")
    _check_task(trial, decided.config, opened)
    if parent is not None:
        parent.check_held_out(trial, opened)
        start = decided.config if decided.starts_as is None else decided.starts_as
        parent.check_fits(asdict(start), start)
    return PlannedTrial(trial_id(trial), trial, requested, decided.counts, workload.cost(trial, decided.counts), parent)


def _check_task(trial: Trial, config: Any, data: Data) -> None:
    """Refuse data that the model cannot take, before any trial starts."""
    try:
        task_of(trial, config, data).check()
    except InputError as error:
        raise _at_model(error) from error
    except ValueError as error:
        raise DataError(str(error)) from error


def _at_model(error: InputError) -> InputError:
    """Return a family's error with the table of the study file in front."""
    text = str(error)
    return InputError(f"model.{text}" if text.split(":", maxsplit=1)[0].isidentifier() else f"model: {text}")


Opening = tuple[str, int | None, float]  # source, vocabulary asked for, validation fraction


@lru_cache(maxsize=65536)
def _configured(
    name: str, _sha256: str | None, request: tuple[tuple[str, Any], ...], opening: Opening, length: int | None
) -> tuple[Any, Counts]:
    """Return the Config and its counts: the same for every seed and learning rate: computed once per file content."""
    family = FAMILIES[name]
    opened = open_data(*opening)
    if not isinstance(opened, family.TAKES):
        raise InputError(f"model: {name} cannot learn from {opening[0]!r}; its own source is {family.DATA!r}")
    try:
        config = configure(family, dict(request), opened, length)
    except InputError as error:
        raise _at_model(error) from error
    return config, family.count(config, length)


def trial_header(study: Study, planned: PlannedTrial, command: str) -> dict[str, Any]:
    """Return what the attempt's ``trial.json`` holds: all that a worker needs, and the columns of its record."""
    trial, parent = planned.trial, planned.parent
    identity = {
        **trial.model,
        **trial.spec.model_dump(),
        "precision": trial.spec.precision,
        "workload": trial.workload,
        "source": trial.data.source,
        "data_vocab_size": trial.data.vocab_size,
        "data_sha256": trial.data.sha256,
        "validation_fraction": trial.data.validation_fraction,
        "noise_std": trial.data.noise_std,
        "study": study.name,
        "trial_id": planned.trial_id,
        "command": command,
        "requested_params": planned.requested.get("params"),
        "size": planned.requested.get("size"),
        "family": trial.family,
        "family_sha256": trial.family_sha256,
        "device_kind": trial.device_kind,
        "parent_trial_id": parent and parent.trial_id,
        "parent_study": parent and parent.study,
        "parent_weights_sha256": parent and parent.identity.weights_sha256,
        "parent_flops": parent and parent.flops,
        **count_columns(planned.counts),  # a trial that fails has its size, too
    }
    return {
        "study": study.name,
        "trial_id": planned.trial_id,
        "command": command,
        "checkpoint": study.run.checkpoint,
        "checkpoint_steps": list(study.run.checkpoint_steps),
        "checkpoint_every_steps": study.run.checkpoint_every_steps,
        "checkpoint_every_s": study.run.checkpoint_every_s,
        "memory": study.run.memory,
        "parent_dir": parent and str(parent.attempt.resolve()),
        "parent_trial": parent and parent.trial.model_dump(),
        "ancestors": parent.ancestors() if parent else [],
        "columns": list(dict.fromkeys([*(column.name for column in columns_of(trial.workload)), *trial.model])),
        "identity": identity,
        "trial": trial.model_dump(),
    }
