"""The contract of a workload: one module with these names, and one line in ``WORKLOADS``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from scalebench.data import Data
from scalebench.errors import InputError
from scalebench.families import FAMILIES, Counts, Family
from scalebench.families.own import ENDING
from scalebench.store import ENVIRONMENT_COLUMNS, STORE_COLUMNS, Column
from scalebench.study import DataSpec, Trial
from scalebench.study import Section as Table

if TYPE_CHECKING:
    from scalebench.workloads.recorder import Recorder

PRECISIONS = ("float32", "bfloat16", "float16")
IMPLEMENTATIONS = ("eager", "sdpa", "compile", "triton", "fused")
KERNELS = ("triton", "fused")  # the implementations on the fused kernels
PLAIN = ("eager", "sdpa")  # those that run any module of torch, operation by operation
DEVICES = ("auto", "cpu", "cuda")
DEFAULT_SEQUENCE_LENGTH = 128
# Measured with 2-layer models of 1,500 parameters on one core: a forked worker's start
# and end, and a training step of nearly no work.
STARTUP_S = 0.4
STEP_FLOOR_S = 6e-3
# Backward costs two forward passes: one for the gradients of the inputs, one for those of the weights.
FORWARDS_PER_STEP = 3
SIZE_COLUMNS = (
    Column("params", "1", "parameters, tied ones once"),
    Column("params_non_embedding", "1", "parameters without embeddings and the output matrix"),
    Column("params_active", "1", "parameters that one token passes through"),
)

# What is planned of every trial, whatever is done in it.
TRIAL_COLUMNS = (
    Column("command", "", "command that ran the study"),
    Column("family", "", "model family"),
    Column("family_sha256", "", "SHA-256 of the file that the family comes from; null for a family that ships"),
    Column("requested_params", "1", "requested size (model.params)"),
    Column("size", "", "requested published size (model.size)"),
    Column("source", "", "data source"),
    Column("data_vocab_size", "1", "requested vocabulary size (data.vocab_size)"),
    Column("data_sha256", "", "SHA-256 of the data"),
    Column("validation_fraction", "1", "share of the data held out"),
    Column("noise_std", "1", "standard deviation of the noise of generated targets"),
    Column("parent_trial_id", "", "trial whose weights this one started from ([from])"),
    Column("parent_study", "", "study that the parent belongs to"),
    Column("parent_weights_sha256", "", "SHA-256 of the parent's weights"),
    Column("parent_flops", "FLOP", "FLOPs of the parent and of all its own parents"),
)


def count_columns(counts: Counts) -> dict[str, Any]:
    """Return the columns of a model's size."""
    return {"params": counts.total, "params_non_embedding": counts.non_embedding, "params_active": counts.active}


class Configure(Protocol):
    """Returns the family's Config for a sequence length, and what it costs."""

    def __call__(self, sequence_length: int | None) -> tuple[Any, Counts]:
        """Raise ``InputError`` where the family has no such size."""


@dataclass(frozen=True)
class Request:
    """One point of a study whose values ``decide`` completes: family, fields of the workload's table, how to size it.

    ``data`` is opened; ``about`` is which part of it a trial takes. ``values`` holds every field of the table that the
    file names, and the defaults of the others unless the trial has a ``parent`` (its Trial; ``continues`` if its run
    is continued). ``branch_step`` is the number of steps before the checkpoint that it starts from; None for the end
    of a run. ``device`` is the file's value: "auto" is resolved on the machine that runs the trial.
    """

    family_name: str
    values: Mapping[str, Any]
    configure: Configure
    data: Data
    about: DataSpec
    parent: Trial | None = None
    continues: bool = False
    branch_step: int | None = None
    device: str = "auto"

    @property
    def family(self) -> Family:
        """The model family."""
        return FAMILIES[self.family_name]


@dataclass(frozen=True)
class Decided:
    """One trial, decided: its spec, the model's Config and what that costs.

    ``starts_as`` is the Config that the parent's weights must fit, where the trial turns it into another.
    """

    spec: Table
    config: Any
    counts: Counts
    starts_as: Any = None


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a trial.

    ``steps`` are training steps, or calls, ``step_floor_s`` is the least time of one, ``memory_bytes`` is the peak.
    ``processes`` share the FLOPs; ``memory_bytes`` is that of all of them.
    """

    flops: int
    steps: int
    memory_bytes: int
    step_floor_s: float = STEP_FLOOR_S
    processes: int = 1

    def seconds(self, peak_flops_per_s: float | None) -> float:
        """Estimated duration on a device of this peak: a fifth of it reached, and a floor for launching each step.

        A rule of thumb for ordering trials and for a first estimate; the results have the measured time.
        """
        per_step = self.flops / max(1, self.steps) / self.processes / (0.2 * (peak_flops_per_s or 1e14))
        return STARTUP_S + self.steps * (self.step_floor_s + per_step)


class Workload(Protocol):
    """What every module in ``WORKLOADS`` provides."""

    @property
    def SUMMARY(self) -> str:  # noqa: N802
        """One line for ``scalebench list``."""

    @property
    def TABLE(self) -> str:  # noqa: N802
        """Name of its table in the study file."""

    @property
    def Section(self) -> type[Table]:  # noqa: N802
        """Fields of that table, each with a default."""

    @property
    def Spec(self) -> type[Table]:  # noqa: N802
        """One trial's values, all decided. It has ``precision``, ``implementation`` and ``seed``."""

    @property
    def COLUMNS(self) -> Sequence[Column]:  # noqa: N802
        """The columns that it fills besides its Spec's and the recorder's."""

    @property
    def TAKES_WEIGHTS(self) -> bool:  # noqa: N802
        """Whether its trials can start from another trial's weights ([from])."""

    @property
    def KEEPS(self) -> Sequence[str]:  # noqa: N802
        """The columns that name what an ok trial saves with ``run.checkpoint``: a null one was not saved."""

    def decide(self, request: Request, /) -> Decided:
        """Fill in defaults and decide every value of one trial.

        Raises ``InputError`` with one line ``field: reason`` for an invalid combination.
        """
        ...

    def cost(self, trial: Trial, counts: Counts, /) -> Cost:
        """Estimate FLOPs, steps, memory and time, without building the model."""
        ...

    def run(self, trial: Trial, recorder: Recorder, /) -> None:
        """Run the trial, filling ``recorder.columns`` as it goes, so that a failed trial keeps what it had measured."""
        ...


def step_flops(counts: Counts, batch_size: int) -> int:
    """Return the FLOPs of one training step: three forward passes.

    What activation checkpointing computes again is not counted: these are the model's FLOPs, not the hardware's.
    """
    return FORWARDS_PER_STEP * counts.forward_flops * batch_size


def offering(capability: str) -> str:
    """Return which families have a capability, for an error message."""
    names = [name for name, family in FAMILIES.items() if capability in family.CAPABILITIES]
    return f"families that can: {', '.join(names)}"


def check_column_names(request: Request, values: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for a field of a user's Config whose column in the results has another meaning."""
    taken = {*values, *(column.name for column in (*STORE_COLUMNS, *TRIAL_COLUMNS, *ENVIRONMENT_COLUMNS))}
    if request.family_name.endswith(ENDING) and (
        names := [field.name for field in fields(request.family.Config) if field.name in taken]
    ):
        raise InputError(
            f"model.{names[0]}: the Config of {request.family_name} has a field with the name of another column of the "
            "results; rename it"
        )


def check_implementation(request: Request, values: Mapping[str, Any], table: str) -> None:
    """Raise ``InputError`` for an implementation that the family lacks, or a Config with a column's name."""
    check_column_names(request, values)
    known, implementation = request.family.IMPLEMENTATIONS, values["implementation"]
    if implementation not in known:
        raise InputError(
            f"{table}.implementation: {request.family_name} has no implementation {implementation!r}, it has "
            f"{', '.join(known)}; choose one of these, as in --set {table}.implementation={known[0]}, or exclude the "
            "combination"
        )


def check_served(request: Request, values: Mapping[str, Any], table: str) -> None:
    """Raise ``InputError`` for an implementation that the family lacks, or a precision that the device lacks."""
    check_implementation(request, values, table)
    if values.get("precision") == "float16" and request.device == "cpu":
        raise InputError(f"{table}.precision: float16 needs a GPU; bfloat16 is the 16-bit format on a CPU")


def check_parent(request: Request, activity: str) -> None:
    """Raise ``InputError`` for a trial without a parent, or one that is to continue the parent's run."""
    if request.parent is None:
        raise InputError(f"from: {activity} starts from a trained model; add a [from] table that names its study")
    if request.continues:
        raise InputError(
            f"from.optimizer_state: {activity} does not continue the parent's run; leave it out, or use "
            "workload = 'training'"
        )


def classes_of(config: Any) -> int:
    """Return how many classes a model chooses from."""
    return next(int(getattr(config, name)) for name in ("vocab_size", "classes", "outputs") if hasattr(config, name))


def spec_columns(spec: type[Table]) -> tuple[Column, ...]:
    """Return the columns that a Spec's own fields become; their meaning is the fields' description."""
    return tuple(Column(name, _unit(name), field.description or "") for name, field in spec.model_fields.items())


def _unit(name: str) -> str:
    """Return the unit that the name of a setting carries: of times and rates."""
    return "1/s" if name.endswith("_per_s") else "s" if name.endswith("_s") else ""


def unserved(trial: Trial) -> str | None:
    """Return why no machine can run a trial on the fused kernels; None if one can, or it uses none of them."""
    implementation, dimension = trial.spec.implementation, trial.model.get("head_dim")
    if implementation not in KERNELS or implementation not in FAMILIES[trial.family].IMPLEMENTATIONS:
        return None
    from scalekernels.attention import HEAD_DIMENSIONS

    if dimension in (None, *HEAD_DIMENSIONS):
        return None
    return f"head_dim: {implementation!r} has kernels for {', '.join(map(str, HEAD_DIMENSIONS))}, not for {dimension}"
