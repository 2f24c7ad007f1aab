"""Options of a comparison, for the command line and Python. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token
from scalekernels import OPERATIONS

from scalebench.errors import InputError, unknown

# The operations that can be compared, as the command line spells them, and the module of each.
OPERATION_MODULES = {name.replace("_", "-"): f"scalekernels.{name}" for name in OPERATIONS}


def _whole(_type: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts would round 1.5, and reports the ``ValueError``."""
    try:
        return int(tokens[0].value)
    except ValueError as error:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from error


Names = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Whole = Annotated[int, Parameter(converter=_whole)]  # of every command


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What to compare, with what, and for how long.

    Parameters
    ----------
    shapes:
        cases (small and odd sizes, the default on a CPU), ladder (sizes for a GPU), or one case, such as
        batch=1,query_heads=8,key_heads=8,query_length=512,key_length=512,head_dimension=64,causal=true; repeatable.
    dtype:
        Data types to use instead of the cases' own: float32, bfloat16, float16, float64; repeatable or
        comma-separated.
    providers:
        Measure only these providers; may be repeated or comma-separated.
    backward:
        Measure the backward pass instead of the forward pass.
    baseline:
        Provider that the others are compared with.
    device:
        cpu or cuda (default: cuda if available).
    processes:
        Number of fresh processes that repeat the measurement (default: 5 on a CPU, 3 on a GPU).
    seconds:
        Maximum sampling time per provider and case in each process.
    noise:
        Stop sampling early once half the 95 % interval of the median is this fraction of the median, below 1.
    margin:
        Equivalence margin, below 1: ratios of times within 1 ± margin count as the same.
    minutes:
        Stop after this time and keep what was measured.
    patience:
        Seconds after which a step, such as a compilation, counts as hung and its provider is left out.
    graphs:
        On a GPU, time replays of a CUDA graph if the work can be captured, otherwise separate launches.
    seed:
        Seed of the inputs and of the order of the providers.
    """

    shapes: Names = ()
    dtype: Names = ()
    providers: Names = ()
    backward: Annotated[bool, Parameter(negative=())] = False
    baseline: str = "eager"
    device: Annotated[str | None, Parameter(show_default=False)] = None
    processes: Annotated[Whole | None, Parameter(show_default=False)] = None
    seconds: float = 1.0
    noise: float = 0.005
    margin: float = 0.02
    seed: Whole = 0
    minutes: Annotated[float | None, Parameter(show_default=False)] = None
    patience: float = 900.0
    graphs: bool = True


POSITIVE = ("processes", "seconds", "noise", "margin", "minutes", "patience")
BELOW_ONE = ("noise", "margin")


def out_of_range(options: Options) -> list[str]:
    """Return a line for each option whose number makes no sense."""
    values = {name: value for name in POSITIVE if (value := getattr(options, name)) is not None}
    return [
        f"--{name} {value}: must be greater than 0{' and less than 1' * (name in BELOW_ONE)}"
        for name, value in values.items()
        if not value > 0 or (name in BELOW_ONE and not value < 1)
    ]


def check_import(options: Options) -> None:
    """Raise ``InputError`` for options that say how to measure, which is over when a file is imported."""
    measuring = [field.name for field in fields(options) if field.name not in ("baseline", "margin")]
    passed = [name for name in measuring if getattr(options, name) != getattr(Options, name)]
    lines = [f"--{name}: has no effect on files that are imported; leave it out" for name in passed]
    if lines := [*lines, *out_of_range(options)]:
        raise InputError(lines)


def listed(texts: str | Sequence[str]) -> list[str]:
    """Return the names in texts that may hold several, joined by commas."""
    options = [texts] if isinstance(texts, str) else texts
    return [name.strip() for text in options for name in text.split(",") if name.strip()]


def check_operation(name: str) -> None:
    """Raise ``InputError`` for an operation that is not known, or a Python file that does not exist."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError([f"{name}: no such file"])
    elif name not in OPERATION_MODULES:
        raise InputError([f"operation: {unknown(name, OPERATION_MODULES)}; or the path of a Python file ending in .py"])
