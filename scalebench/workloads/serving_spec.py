"""The table [serving] of a study, one trial's values, and the lengths and cost of its requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from scalebench.families import Counts, Family
from scalebench.families.cache import cache_bytes
from scalebench.study import Section
from scalebench.study.axes import Axis, Count, Finite, WholeNumber, one_of
from scalebench.workloads.base import DEVICES, PLAIN
from scalebench.workloads.inference_spec import WEIGHT_DTYPES, cached_bytes, computed_in, stored_bytes

LOADS = ("load", "requests_per_s", "concurrency")  # how requests arrive: one of these
DEFAULT_LOAD, LEAST_LOAD = 0.7, 0.01
FEWEST_REQUESTS = 10  # by which a rate is measured


class ServingSection(Section):
    """How a model is served, and which requests it gets.

    Up to ``max_batch`` sequences are generated together; each joins and leaves the batch by itself. Requests arrive at
    random moments (Poisson), ``requests_per_s`` of them or ``load`` times as many as the model can answer; or
    ``concurrency`` users each send the next one when they have their answer. Prompts have ``prompt_length`` tokens and
    answers ``new_tokens``, evenly spread up to the share ``spread`` below and above.
    """

    load: Axis[Annotated[Finite, Field(ge=LEAST_LOAD)]] | None = None
    requests_per_s: Axis[Finite] | None = None
    concurrency: Axis[Count] | None = None
    max_batch: Axis[Count] = (8,)
    prompt_length: Axis[Count] | None = None
    new_tokens: Axis[Count] | None = None
    spread: Axis[Annotated[float, Field(ge=0, lt=1)]] = (0.5,)
    requests: Axis[Annotated[Count, Field(ge=FEWEST_REQUESTS)]] = (200,)
    first_token_within_s: Axis[Finite] | None = None
    token_within_s: Axis[Finite] | None = None
    weight_dtype: Axis[Annotated[str, one_of(WEIGHT_DTYPES)]] = ("float32",)
    implementation: Axis[Annotated[str, one_of(PLAIN)]] = ("sdpa",)
    device: Axis[Annotated[str, one_of(DEVICES)]] = ("auto",)
    seed: Axis[WholeNumber] = (0,)


class ServingSpec(Section):
    """One trial's serving, every value decided."""

    load: float | None = Field(description="offered requests per second as a share of those that can be answered")
    requests_per_s: float | None = Field(description="offered requests per second; null where load or users are given")
    concurrency: int | None = Field(description="users, each with one request at a time; null for random arrivals")
    max_batch: int = Field(description="sequences that are generated together at most")
    prompt_length: int = Field(description="mean tokens of a prompt")
    new_tokens: int = Field(description="mean tokens generated for a request")
    spread: float = Field(description="share by which lengths differ from their mean at most, evenly distributed")
    sequence_length: int = Field(description="tokens of the longest prompt")
    requests: int = Field(description="measured requests")
    first_token_within_s: float | None = Field(description="objective: most seconds to the first token")
    token_within_s: float | None = Field(description="objective: most seconds per further token, on average")
    weight_dtype: str = Field(description="number format of the weights")
    implementation: str = Field(description="eager or sdpa")
    seed: int = Field(description="seed of weights, lengths and arrivals")

    @property
    def precision(self) -> str:
        """Number format of the computation: that of the weights, float32 for int8 weights."""
        return computed_in(self.weight_dtype)

    @property
    def batch_size(self) -> int:
        """Prompts that the task makes at a time."""
        return self.max_batch

    @property
    def idle_time(self) -> float:
        """How many times as long as at capacity the load takes at least, as its requests come one after another."""
        return 1 / min(1.0, self.load or 1.0)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a request, which is what progress counts."""
        return self.prompt_length + self.new_tokens

    @property
    def most_new_tokens(self) -> int:
        """Tokens of the longest answer."""
        return bounds(self.new_tokens, self.spread)[1]

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence: what a row of the cache holds."""
        return self.sequence_length + self.most_new_tokens

    @property
    def warmups(self) -> int:
        """Requests that arrive before the measured ones, so that those find a busy model."""
        return max(self.max_batch, self.requests // 4)


def bounds(mean: int, spread: float) -> tuple[int, int]:
    """Return the shortest and the longest length, in tokens, of those within a share of the mean."""
    reach = int(mean * spread)
    return mean - reach, mean + reach


def request_flops(family: Family, config: Any, spec: ServingSpec) -> int:
    """Return the FLOPs of a request of mean length; each token but the last generated one passes the model once."""
    return int(family.count(config, spec.prompt_length + spec.new_tokens - 1).forward_flops)


def held_bytes(config: Any, counts: Counts, spec: ServingSpec) -> int:
    """Estimate what weights and cache take."""
    cache = cache_bytes(config, spec.max_batch, spec.capacity, cached_bytes(spec.weight_dtype))
    return stored_bytes(counts, spec.weight_dtype) + cache
