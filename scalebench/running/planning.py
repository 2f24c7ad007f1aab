"""From a study to its trials: names checked, defaults filled in, sizes resolved, costs estimated; nothing built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scalebench.data import DataError, open_data, open_source
from scalebench.errors import PointRefused, StudyError, unknown
from scalebench.families import FAMILIES, Counts, OutOfReach, configure
from scalebench.laws import LAWS
from scalebench.optim.optimizers import OPTIMIZERS
from scalebench.study import BUDGETS, DataSpec, InferenceSpec, Study, TrainSpec, Trial, trial_id
from scalebench.study.file import override, parse_study, read_toml
from scalebench.workloads.graphs import decided_graph
from scalebench.workloads.inference import call_flops, held_bytes

DEFAULT_STEPS = 400
DEFAULT_SEQUENCE_LENGTH = 128
DEFAULT_NEW_TOKENS = 32
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
    def steps(self) -> int:
        """Training steps, or calls of an inference trial."""
        train, inference = self.trial.train, self.trial.inference
        return train.steps if train else inference.warmups + inference.repeats if inference else 0

    @property
    def flops(self) -> int:
        """FLOPs of the whole trial: a training step costs three forward passes."""
        train, inference = self.trial.train, self.trial.inference
        if train:
            return 3 * self.counts.forward_flops * train.batch_size * train.steps
        assert inference
        family = FAMILIES[self.trial.family]
        return self.steps * call_flops(family, family.Config(**self.trial.model), inference)

    def seconds(self, peak_flops_per_s: float | None) -> float:
        """Estimated duration on a device of this peak: a fifth of it reached, and a floor for launching each step.

        A rule of thumb for ordering trials and for a first idea; the results say what it really was.
        """
        per_step = self.flops / self.steps / (0.2 * (peak_flops_per_s or 1e14))
        inference = self.trial.inference
        # A forward pass is a third of a step's work; generating takes one for each token.
        floor = STEP_FLOOR_S / 3 * (inference.new_tokens or 1) if inference else STEP_FLOOR_S
        return STARTUP_S + self.steps * (floor + per_step)

    @property
    def memory_bytes(self) -> int:
        """Estimated peak: parameters, gradients and optimizer state in float32, and the activations of a batch.

        Micro-batches divide the activations. At inference: weights, cache, and the activations of one layer.
        """
        train, inference = self.trial.train, self.trial.inference
        if train:
            state = OPTIMIZERS[train.optimizer].state_per_param
            rows = -(-train.batch_size // train.accumulation)
            return 4 * self.counts.total * (2 + state) + self.counts.activation_bytes * rows
        assert inference
        family = FAMILIES[self.trial.family]
        config = family.Config(**self.trial.model)
        layer = self.counts.activation_bytes // max(1, int(self.trial.model.get("depth") or 1))
        return held_bytes(family, config, self.counts, inference) + layer * inference.batch_size * inference.beams


def studies_dir() -> Path:
    """Return the folder of the studies that ship: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
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
        except PointRefused as error:
            yield None, str(error)
        except OutOfReach as error:
            yield None, f"model.{error}" if str(error).split(":")[0].isidentifier() else f"model: {error}"
        except DataError as error:
            yield None, f"data: {error}"


def resolve(point: Mapping[str, Any]) -> PlannedTrial:
    """Decide every value of one point: the family's Config, the budget in steps, the learning rate, the device.

    ``point`` is one of ``Study.points()``. Raises ``PointRefused``, ``OutOfReach`` or ``DataError`` when it cannot be.
    """
    model, data = _section(point, "model"), _section(point, "data")
    inference = _section(point, "inference")
    name = model.pop("family")
    source = data.pop("source", FAMILIES[name].DATA)
    decide = _inference if inference else _training
    opening = (source, data.get("vocab_size"), data["validation_fraction"])
    work, counts, fields = decide(name, model, opening, inference or _section(point, "train"))
    device_kind = _device_kind(work.pop("device"))
    opened = open_data(*opening)
    trial = Trial.model_construct(
        family=name,
        model=fields,
        train=None if inference else TrainSpec.model_construct(**work),
        inference=InferenceSpec.model_construct(**work) if inference else None,
        data=DataSpec.model_construct(source=source, sha256=opened.sha256, **({"vocab_size": None} | data)),
        device_kind=device_kind,
    )
    try:
        FAMILIES[name].task(FAMILIES[name].Config(**fields), opened, trial.data, trial.work).check()
    except OutOfReach:
        raise  # a size that does not suit the data: the model's field is to be named
    except ValueError as error:
        raise DataError(str(error)) from error
    return PlannedTrial(trial_id(trial), trial, model, counts)


Opening = tuple[str, int | None, float]  # source, vocabulary asked for, validation fraction
Decided = tuple[dict[str, Any], Counts, dict[str, Any]]  # the spec's values, what it costs, the Config's fields


def _training(name: str, model: Mapping[str, Any], opening: Opening, train: dict[str, Any]) -> Decided:
    """Decide the values of a trial that trains."""
    family, batch_size = FAMILIES[name], train["batch_size"]
    length = train["sequence_length"] = _sequence_length(name, "train.sequence_length", train.get("sequence_length"))
    config, counts, fields = _configured(name, tuple(model.items()), opening, length)
    budget = {key: train.pop(key) for key in BUDGETS if key in train}
    train["steps"] = _steps(budget, counts, batch_size, length)
    # An unknown optimizer is told of later, beside what else is wrong.
    optimizer = OPTIMIZERS.get(train["optimizer"], OPTIMIZERS["adamw"])
    if train["learning_rate"] == "auto":
        train["learning_rate"] = family.learning_rate(config) * optimizer.rate_factor
    train.setdefault("weight_decay", optimizer.weight_decay)
    train["graph"] = decided_graph(name, train)
    if train["accumulation"] > batch_size:
        raise PointRefused(f"train.accumulation: {train['accumulation']} micro-batches of a batch of {batch_size}")
    if train["checkpointing"] and "checkpointing" not in family.CAPABILITIES:
        raise PointRefused(f"train.checkpointing: {name} has no blocks to compute again; {_offering('checkpointing')}")
    return train, counts, fields


def _inference(name: str, model: Mapping[str, Any], opening: Opening, asked: dict[str, Any]) -> Decided:
    """Decide the values of a trial of a model at work; a generating family's context takes prompt and new tokens."""
    writes = "generation" in FAMILIES[name].CAPABILITIES
    if not writes:
        _refuse_writing(name, asked)
    if asked["beams"] > 1 and asked["temperature"] > 0:
        raise PointRefused("inference.beams: beam search draws nothing; leave temperature at 0, or beams at 1")
    if asked["temperature"] == 0 and (asked["top_k"] or asked["top_p"] < 1):
        raise PointRefused("inference.temperature: top_k and top_p choose what is drawn from; set it above 0")
    prompt = _sequence_length(name, "inference.prompt_length", asked.pop("prompt_length", None))
    new = asked["new_tokens"] = asked.get("new_tokens") or (DEFAULT_NEW_TOKENS if writes else None)
    whole = (prompt or 0) + (new or 0) or None
    config, counts, fields = _configured(name, tuple(model.items()), opening, whole)
    if writes and whole and whole > config.context:
        raise PointRefused(f"inference.new_tokens: {prompt} + {new} tokens outgrow a context of {config.context}")
    return asked | {"sequence_length": prompt}, counts, fields


def _refuse_writing(name: str, asked: Mapping[str, Any]) -> None:
    """Refuse what only a family that generates can be asked for."""
    plain = {"new_tokens": None, "temperature": 0, "top_k": 0, "top_p": 1, "beams": 1}
    for key, value in plain.items():
        if asked.get(key) != value:
            raise PointRefused(f"inference.{key}: {name} generates nothing: leave it out; {_offering('generation')}")


def _offering(ability: str) -> str:
    """Say which families offer an ability."""
    return (
        f"families that can: {', '.join(name for name, family in FAMILIES.items() if ability in family.CAPABILITIES)}"
    )


def _section(point: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in point.items() if key.startswith(f"{section}.")}


def _sequence_length(name: str, key: str, given: int | None) -> int | None:
    if FAMILIES[name].SEQUENCES:
        return given or DEFAULT_SEQUENCE_LENGTH
    if given is not None:
        raise PointRefused(f"{key}: {name} takes no sequences: leave it out")
    return None


@lru_cache(maxsize=65536)
def _configured(
    name: str, request: tuple[tuple[str, Any], ...], opening: Opening, length: int | None
) -> tuple[Any, Counts, dict[str, Any]]:
    """Return the Config, its counts and its fields: the same for every seed and learning rate, so done once."""
    family = FAMILIES[name]
    opened = open_data(*opening)
    if not isinstance(opened, family.TAKES):
        raise OutOfReach(f"{name} cannot learn from {opening[0]!r}; its own source is {family.DATA!r}")
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
