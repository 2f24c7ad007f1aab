"""The table [inference] of a study, one trial's values, and the cost of a call in closed form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat

from scalebench.families import Counts, Family
from scalebench.families.cache import cache_bytes
from scalebench.study import Section
from scalebench.study.axes import Axis, Count, Share, WholeNumber, one_of
from scalebench.workloads.base import DEVICES, IMPLEMENTATIONS

WEIGHT_DTYPES = ("float32", "bfloat16", "int8")


class InferenceSection(Section):
    """What is measured of inference.

    A family that generates reads ``prompt_length`` tokens and generates ``new_tokens``: greedily unless ``temperature``
    or ``beams`` say otherwise (``top_k`` = 0 and ``top_p`` = 1 exclude no token). Others do one forward pass.
    """

    batch_size: Axis[Count] = (1,)
    prompt_length: Axis[Count] | None = None
    new_tokens: Axis[Count] | None = None
    weight_dtype: Axis[Annotated[str, one_of(WEIGHT_DTYPES)]] = ("float32",)
    temperature: Axis[Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]] = (0.0,)
    top_k: Axis[WholeNumber] = (0,)
    top_p: Axis[Share] = (1.0,)
    beams: Axis[Count] = (1,)
    repeats: Axis[Count] = (100,)
    warmups: Axis[Count] = (3,)
    implementation: Axis[Annotated[str, one_of(IMPLEMENTATIONS)]] = ("eager",)
    device: Axis[Annotated[str, one_of(DEVICES)]] = ("auto",)
    seed: Axis[WholeNumber] = (0,)


class InferenceSpec(Section):
    """One trial's inference, every value decided."""

    batch_size: int = Field(description="samples per call")
    sequence_length: int | None = Field(description="tokens of the prompt, or of a forward pass")
    new_tokens: int | None = Field(description="tokens generated per call; null for a forward pass")
    weight_dtype: str = Field(description="number format of the weights")
    temperature: float = Field(description="sampling temperature; 0 takes the most likely token")
    top_k: int = Field(description="most likely tokens sampled from; 0 for all")
    top_p: float = Field(description="probability mass of the tokens sampled from")
    beams: int = Field(description="beam width")
    repeats: int = Field(description="measured calls")
    warmups: int = Field(description="calls before the measured ones")
    implementation: str = Field(description="eager, sdpa, compile, triton or fused")
    seed: int = Field(description="seed of weights, inputs and sampling")

    @property
    def precision(self) -> str:
        """Number format of the computation: that of the weights, float32 for int8 weights."""
        return computed_in(self.weight_dtype)


def computed_in(weight_dtype: str) -> str:
    """Return the number format that is computed in with weights of a format."""
    return "bfloat16" if weight_dtype == "bfloat16" else "float32"


def call_flops(family: Family, config: Any, spec: InferenceSpec) -> int:
    """Return the FLOPs of one call.

    With a cache each token passes the model once, so that reading T tokens and generating n costs a causal forward pass
    over T + n - 1; each beam generates its own.
    """
    prompt_flops = int(family.count(config, spec.sequence_length).forward_flops)
    if not spec.new_tokens:
        return prompt_flops * spec.batch_size
    whole = int(family.count(config, (spec.sequence_length or 0) + spec.new_tokens - 1).forward_flops)
    return spec.batch_size * (prompt_flops + spec.beams * (whole - prompt_flops))


def stored_bytes(counts: Counts, weight_dtype: str) -> int:
    """Estimate what weights take; in int8 embeddings stay float32, and a tied output layer is a copy."""
    each = {"float32": 4, "bfloat16": 2, "int8": 1}[weight_dtype]
    return counts.non_embedding * each + (counts.total - counts.non_embedding) * (5 if each == 1 else each)


def held_bytes(family: Family, config: Any, counts: Counts, spec: InferenceSpec) -> int:
    """Estimate what weights and cache take."""
    weights = stored_bytes(counts, spec.weight_dtype)
    if "generation" not in family.CAPABILITIES:
        return weights
    tokens = (spec.sequence_length or 0) + (spec.new_tokens or 0)
    return weights + cache_bytes(config, spec.batch_size * spec.beams, tokens, cached_bytes(spec.weight_dtype))


def cached_bytes(weight_dtype: str) -> int:
    """Return the bytes of a number in the cache: keys and values are of the type that is computed in."""
    return {"bfloat16": 2, "float32": 4}[computed_in(weight_dtype)]
