"""What a study can say about quantisation ([quantize]), and one trial's quantisation with every value decided."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scalebench.study import Section
from scalebench.study.axes import Axis, Count, WholeNumber, one_of
from scalebench.workloads.base import DEVICES

INT8, INT8_DYNAMIC, INT4, SIMULATED = "int8-weight-only", "int8-dynamic", "int4-weight-only", "simulated"
# The bits of a weight; those of simulated weights are the study's to choose.
BITS = {"float32": 32, "bfloat16": 16, INT8: 8, INT8_DYNAMIC: 8, INT4: 4, SIMULATED: None}
SCHEMES = tuple(BITS)
GROUPED = (INT8, INT4, SIMULATED)  # the schemes whose scales can be those of groups of a row
INT4_GROUPS = (32, 64, 128)
FORMATS = ("float32", "bfloat16")
PLAIN = ("eager", "sdpa")  # implementations whose linear layers are modules that can be exchanged

Bits = Annotated[int, Field(ge=1, le=8)]


class QuantizeSection(Section):
    """How each model is quantised: its hidden linear layers, unless the scheme is a number format of all weights.

    ``bits`` is for simulated weights, ``group_size`` for schemes with a scale per group of a row in place of one per
    row. With ``outer_layers`` the first and last layers are converted, too, and a tied output layer becomes a copy.
    """

    scheme: Axis[Annotated[str, one_of(SCHEMES)]] = (INT8,)
    bits: Axis[Bits] | None = None
    group_size: Axis[Count] | None = None
    outer_layers: Axis[bool] = (False,)
    precision: Axis[Annotated[str, one_of(FORMATS)]] = ("float32",)
    implementation: Axis[Annotated[str, one_of(PLAIN)]] = ("eager",)
    device: Axis[Annotated[str, one_of(DEVICES)]] = ("auto",)
    seed: Axis[WholeNumber] = (0,)


class QuantizeSpec(Section):
    """One trial's quantisation, every value decided."""

    scheme: str = Field(description="how the weights are stored: " + ", ".join(SCHEMES))
    bits: int = Field(description="bits of a converted weight")
    group_size: int | None = Field(description="weights of a row that share a scale; null for one scale per row")
    outer_layers: bool = Field(description="whether the first and last layers are converted, too")
    precision: str = Field(description="number format of the computation and of the weights that are not converted")
    implementation: str = Field(description="eager or sdpa")
    sequence_length: int | None = Field(description="tokens per sample")
    seed: int = Field(description="seed of the parent, which can decide what is held out")
    batch_size: int = Field(default=1, description="samples per timed forward pass")

    @property
    def linear_only(self) -> bool:
        """Whether the scheme converts linear layers; the others are a number format of all weights."""
        return self.scheme not in FORMATS
