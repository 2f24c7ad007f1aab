"""From a study to its trials: names checked, defaults filled in, sizes resolved, costs estimated; nothing built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scalebench.data import DataError, open_source
from scalebench.errors import StudyError, unknown
from scalebench.families import FAMILIES, Counts, OutOfReach, configure
from scalebench.laws import LAWS
from scalebench.optimizers import OPTIMIZERS
from scalebench.study import BUDGETS, DataSpec, Study, TrainSpec, Trial, trial_id
from scalebench.study_file import override, parse_study, read_toml

DEFAULT_STEPS = 400
DEFAULT_SEQUENCE_LENGTH = 128
# Seen with 2-layer models of 1,500 parameters on one core: process start, and the time of a step of nearly no work.
STARTUP_S = 4.0
STEP_FLOOR_S = 6e-3


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, its identity, what was asked for, and what it will cost."""

    trial_id: str
    trial: Trial
    requested: Mapping[str, Any]
    counts: Counts

    @property
    def flops(self) -> int:
        """FLOPs of the whole training: three forward passes a step."""
        return 3 * self.counts.forward_flops * self.trial.train.batch_size * self.trial.train.steps

    def seconds(self, peak_flops_per_s: float | None) -> float:
        """Estimated duration on a device of this peak: a fifth of it reached, and a floor for launching each step.

        A rule of thumb for ordering trials and for a first idea; the results say what it really was.
        """
        per_step = self.flops / self.trial.train.steps / (0.2 * (peak_flops_per_s or 1e14))
        return STARTUP_S + self.trial.train.steps * (STEP_FLOOR_S + per_step)

    @property
    def memory_bytes(self) -> int:
        """Estimated peak: parameters, gradients and optimizer state in float32, and the activations of a batch."""
        state = OPTIMIZERS[self.trial.train.optimizer].state_per_param
        return 4 * self.counts.total * (2 + state) + self.counts.activation_bytes * self.trial.train.batch_size


def studies_dir() -> Path:
    """Return the folder of the studies that ship: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent / "studies"


def find_study(name: str) -> Path:
    """Return the path of a study given by path or by the name of one that ships; ``StudyError`` when there is none."""
    shipped = {path.stem: path for path in sorted(studies_dir().glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if not path.exists() and path.suffix != ".toml":
        raise StudyError([f"{name}: {unknown(name, list(shipped)).replace('unknown', 'no such file or study', 1)}"])
    return path


def load_study(name: str | Path, settings: Sequence[str] = ()) -> Study:
    """Read and check a study file, or one that ships by name; ``settings`` are ``key=value`` overrides.

    Raises ``StudyError`` with every error found at once: types, keys and names, and then also the sizes that a family
    cannot take (``plan`` finds those in a study that is otherwise sound).
    """
    path = find_study(str(name))
    raw = read_toml(path)
    override(raw, settings)
    study, lines = parse_study(raw)
    if study is not None:
        lines += _name_lines(study)
        if lines and not any(line.startswith(("model.family", "data.source")) for line in lines):
            lines += [line for _, line in _resolved(study) if line]
    if study is None or lines:
        raise StudyError([f"{path}: {line}" for line in lines])
    return study.read_from(path, settings)


def _name_lines(study: Study) -> Iterator[str]:
    """Yield a line for every name that is not known."""
    axes = study.axes() | {"fit.law": (study.fit.law,)}
    known = {"model.family": list(FAMILIES), "train.optimizer": list(OPTIMIZERS), "fit.law": list(LAWS)}
    for key, names in known.items():
        yield from (f"{key}: {unknown(value, names)}" for value in axes.get(key, ()) if value not in names)
    for source in axes.get("data.source", ()):
        try:
            open_source(source)
        except DataError as error:
            yield f"data.source: {error}"
    fields = sorted({key.partition(".")[2] for key in axes})
    yield from (f"fit.best_over: {unknown(axis, fields)}" for axis in study.fit.best_over if axis not in fields)


def plan(study: Study) -> list[PlannedTrial]:
    """Return every trial of the study, in its order, each once. Raises ``StudyError`` for points that cannot be."""
    trials: dict[str, PlannedTrial] = {}
    lines: list[str] = []
    for planned, line in _resolved(study):
        if planned is None:
            lines.append(line)
        else:
            trials.setdefault(planned.trial_id, planned)
    if not trials and not lines:
        lines.append("exclude: every combination is excluded; nothing is left to run")
    if lines:
        raise StudyError([f"{study.origin}: {line}" for line in lines])
    return list(trials.values())


def _resolved(study: Study) -> Iterator[tuple[PlannedTrial | None, str]]:
    """Yield each point's trial, or None and the reason why it cannot be planned."""
    for point in study.points():
        try:
            yield resolve(point), ""
        except OutOfReach as error:
            yield None, f"model.{error}" if str(error).split(":")[0].isidentifier() else f"model: {error}"
        except DataError as error:
            yield None, f"data: {error}"


def resolve(point: Mapping[str, Any]) -> PlannedTrial:
    """Decide every value of one point: the family's Config, the budget in steps, the learning rate, the device.

    ``point`` is one of ``Study.points()``. Raises ``OutOfReach`` or ``DataError`` when it cannot be.
    """
    model, train, data = (_section(point, name) for name in ("model", "train", "data"))
    name = model.pop("family")
    source = data.pop("source", FAMILIES[name].DATA)
    length = _sequence_length(name, train.pop("sequence_length", None))
    config, counts, fields = _configured(name, tuple(model.items()), source, length)
    train["steps"] = _steps(
        {key: train.pop(key) for key in BUDGETS if key in train}, counts, train["batch_size"], length
    )
    if train["learning_rate"] == "auto":
        train["learning_rate"] = FAMILIES[name].learning_rate(config)
    device_kind = _device_kind(train.pop("device"))
    opened = open_source(source)
    trial = Trial.model_construct(
        family=name,
        model=fields,
        train=TrainSpec.model_construct(sequence_length=length, **train),
        data=DataSpec.model_construct(source=source, sha256=opened.sha256, **data),
        device_kind=device_kind,
    )
    try:
        FAMILIES[name].task(config, opened, trial.data, trial.train).check()
    except OutOfReach:
        raise  # a size that does not suit the data: the model's field is to be named
    except ValueError as error:
        raise DataError(str(error)) from error
    return PlannedTrial(trial_id(trial), trial, model, counts)


def _section(point: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in point.items() if key.startswith(f"{section}.")}


def _sequence_length(name: str, given: int | None) -> int | None:
    if FAMILIES[name].SEQUENCES:
        return given or DEFAULT_SEQUENCE_LENGTH
    if given is not None:
        raise OutOfReach(f"{name} takes no sequences: leave train.sequence_length out")
    return None


@lru_cache(maxsize=65536)
def _configured(
    name: str, request: tuple[tuple[str, Any], ...], source: str, length: int | None
) -> tuple[Any, Counts, dict[str, Any]]:
    """Return the Config, its counts and its fields: the same for every seed and learning rate, so done once."""
    family = FAMILIES[name]
    opened = open_source(source)
    if not isinstance(opened, family.TAKES):
        raise OutOfReach(f"{name} cannot learn from {source!r}; its own source is {family.DATA!r}")
    config = configure(family, dict(request), opened, length)
    return config, family.count(config, length), asdict(config)


def _steps(budget: Mapping[str, Any], counts: Counts, batch_size: int, length: int | None) -> int:
    """Turn the budget into steps; a budget smaller than one step still takes one."""
    if not budget:
        return DEFAULT_STEPS
    ((kind, amount),) = budget.items()
    if kind == "steps":
        return int(amount)
    if kind == "flops":
        return max(1, round(amount / (3 * counts.forward_flops * batch_size)))
    tokens = amount * counts.active_non_embedding if kind == "tokens_per_param" else amount
    return max(1, round(tokens / (batch_size * (length or 1))))


@lru_cache(maxsize=1)
def _cuda_usable() -> bool:
    import torch

    return torch.cuda.is_available()


def _device_kind(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if _cuda_usable() else "cpu"
