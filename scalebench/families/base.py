"""The contract of a family: one module with these names, and one line in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from scalebench.study import DataSpec, TrainSpec
    from scalebench.tasks import Task


class OutOfReach(ValueError):  # noqa: N818 - a state of the request, named as people say it
    """A size that a family cannot take; the message says what was asked for and what can be had."""


class Unsupported(RuntimeError):  # noqa: N818
    """Something that this machine, or this version, cannot do; the message is the reason."""


@dataclass(frozen=True)
class Counts:
    """What a configuration holds and costs, computed without building it.

    ``by_group`` sums to ``total``. ``non_embedding`` leaves out tables that are looked up rather than multiplied.
    ``active`` is what one sample passes through. ``forward_flops`` counts a multiply-add as two, per sample;
    ``attention_flops`` is the part of it spent on attention scores and mixing, halved where attention is causal.
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

    def task(self, config: Any, data: Any, spec: DataSpec, train: TrainSpec, /) -> Task:
        """Return what the model is to learn."""

    def learning_rate(self, config: Any, /) -> float:
        """Return the learning rate that suits this size with AdamW."""
