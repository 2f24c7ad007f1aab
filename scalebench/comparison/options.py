"""The options of a comparison, as the command line and Python give them. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from scalekernels import OPERATIONS

# The operations that can be compared, as the command line spells them, and the module of each.
OPERATION_MODULES = {name.replace("_", "-"): f"scalekernels.{name}" for name in OPERATIONS}

Words = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What to compare, against what, and for how long.

    Parameters
    ----------
    shapes:
        "cases" (small and odd, unless given on a CPU), "ladder" (sizes for a GPU) or a case such as
        batch=1,heads=8,length=1024; may be repeated.
    dtype:
        Use these instead of the cases' own: float32, bfloat16, float16; may be repeated, or joined by commas.
    providers:
        Measure these alone; may be repeated, or joined by commas.
    backward:
        Measure the gradients instead of the results.
    baseline:
        The provider that the others are judged against.
    device:
        cpu or cuda; a GPU where there is one.
    processes:
        Processes over which everything is repeated: 5 on a CPU, 3 on a GPU.
    seconds:
        The most time for the samples of a provider and case in one process.
    noise:
        Stop before, once half the 95 % interval of the median is this fraction of it.
    margin:
        Ratios of times closer to one than this are the same.
    minutes:
        End after this time and keep what was measured by then.
    patience:
        Seconds after which a step, such as a compilation, is taken for hung and its provider left out.
    graphs:
        On a GPU time replays of CUDA graphs where work can be captured; otherwise every call is launched.
    seed:
        Decides inputs and the order in which providers take turns.
    """

    shapes: Words = ()
    dtype: Words = ()
    providers: Words = ()
    backward: Annotated[bool, Parameter(negative=())] = False
    baseline: str = "eager"
    device: Annotated[str | None, Parameter(show_default=False)] = None
    processes: Annotated[int | None, Parameter(show_default=False)] = None
    seconds: float = 1.0
    noise: float = 0.005
    margin: float = 0.02
    seed: int = 0
    minutes: Annotated[float | None, Parameter(show_default=False)] = None
    patience: float = 900.0
    graphs: bool = True


def listed(texts: str | Sequence[str]) -> list[str]:
    """Return the names in texts that may hold several, joined by commas."""
    given = [texts] if isinstance(texts, str) else texts
    return [name.strip() for text in given for name in text.split(",") if name.strip()]
