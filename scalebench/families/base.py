"""The contract of a family: one module with these names, and one line in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from scalebench.errors import InputError
from scalebench.families.cache import KVCache

if TYPE_CHECKING:
    from scalebench.study import Batching, DataSpec
    from scalebench.tasks import Task


# What a family may offer beyond training and a forward pass, and what its module must then have.
ABILITIES: Mapping[str, str] = {
    "checkpointing": "its module has `blocks`, an nn.ModuleList whose activations can be computed again",
    "generation": "its module is a `Decoder`: it continues a sequence of tokens",
    "filling": "its module fills the masked places of a sequence of tokens",
}


class OutOfReach(InputError):  # noqa: N818 - a state of the request, named as people say it
    """A size that a family cannot take; the message says what was asked for and what can be had."""


class Unsupported(RuntimeError):  # noqa: N818
    """Something that this machine, or this version, cannot do; the message is the reason."""


@dataclass(frozen=True)
class Counts:
    """What a configuration holds and costs, computed without building it.

    ``by_group`` sums to ``total``. ``non_embedding`` leaves out tables that are looked up rather than multiplied.
    ``active`` is what one token (one sample, where there are none) passes through. ``forward_flops`` counts a
    multiply-add as two, per sample; ``attention_flops`` is the part of it spent on attention scores and mixing, halved
    where attention is causal.
    ``activation_bytes`` estimates what training one sample keeps in float32.
    """

    by_group: Mapping[str, int]
    non_embedding: int
    active: int
    forward_flops: int
    attention_flops: int
    activation_bytes: int

    @property
    def total(self) -> int:
        """All parameters; tied ones once."""
        return sum(self.by_group.values())

    @property
    def active_non_embedding(self) -> int:
        """Parameters in the products that one token takes part in: what dials and budgets per parameter mean."""
        return self.non_embedding - (self.total - self.active)


def check_sequences(symbols: int, vocab_size: int, length: int | None, context: int | None = None) -> None:
    """Raise ``OutOfReach`` when data of so many ``symbols``, ``length`` of them a sample, does not fit the model."""
    if vocab_size < symbols:
        raise OutOfReach(f"vocab_size: {vocab_size} is less than the data's {symbols} symbols (specials included)")
    if context is not None and length is not None and length > context:
        raise OutOfReach(f"sequence_length = {length} is longer than the context of {context}")


class Decoder(Protocol):
    """What the module of a family that offers ``generation`` can do."""

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for ``capacity`` tokens of ``batch`` sequences."""
        ...

    def __call__(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Read tokens (B, T) after those in the cache, add them to it, and return logits (B, T, V)."""
        ...


class Family(Protocol):
    """What every module in ``FAMILIES`` provides: these constants, a frozen dataclass ``Config``, these functions."""

    @property
    def SUMMARY(self) -> str:  # noqa: N802
        """One line for ``scalebench list``."""

    @property
    def DATA(self) -> str:  # noqa: N802
        """The source it learns where a study names none."""

    @property
    def TAKES(self) -> type | tuple[type, ...]:  # noqa: N802
        """The kind of data it can learn."""

    @property
    def SEQUENCES(self) -> bool:  # noqa: N802
        """Whether a sample is a sequence of ``sequence_length`` tokens."""

    @property
    def IMPLEMENTATIONS(self) -> tuple[str, ...]:  # noqa: N802
        """The implementations it has."""

    @property
    def OFFERS(self) -> tuple[str, ...]:  # noqa: N802
        """What its module can do besides, names of ``ABILITIES``."""

    @property
    def SIZES(self) -> Mapping[str, Any]:  # noqa: N802
        """Published Configs by name."""

    @property
    def Config(self) -> Any:  # noqa: N802
        """The frozen dataclass that describes a size."""

    def at(self, *args: Any, **kwargs: Any) -> Any:
        """``at(params, **held)``: the Config of ``params`` non-embedding parameters, the fields in ``held`` kept."""

    def explicit(self, *args: Any, **kwargs: Any) -> Any:
        """``explicit(**fields)``: the Config that the fields describe, the others by the family's rules."""

    def defaults(self, data: Any, sequence_length: int | None, /) -> dict[str, Any]:
        """Return the Config fields that the data decides (vocabulary, context)."""

    def build(self, config: Any, implementation: str, /) -> nn.Module:
        """Return the module, initialised from torch's global generator."""

    def count(self, config: Any, sequence_length: int | None = None, /) -> Counts:
        """Count parameters by group, FLOPs and activation bytes of one sample."""

    def task(self, config: Any, data: Any, spec: DataSpec, train: Batching, /) -> Task:
        """Return what the model is to learn; ``train`` is a trial's spec: batch size, sequence length and seed."""

    def learning_rate(self, config: Any, /) -> float:
        """Return the learning rate that suits this size with AdamW."""
