"""The contract of a family: one module with these names, and one line in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from scalebench.errors import InputError
from scalebench.families.cache import KVCache

__all__ = ["CAPABILITIES", "Counts", "Decoder", "Family", "check_sequences"]

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from scalebench.study import Batching, DataSpec
    from scalebench.tasks import Task


# Capabilities that a family may declare beyond training and a forward pass, and what they require of its module.
CAPABILITIES: Mapping[str, str] = {
    "checkpointing": "its module has `blocks`, an nn.ModuleList whose activations can be recomputed",
    "generation": "its module is a `Decoder`: it continues a sequence of tokens",
    "batching": "its attention takes positions and seen keys from the cache: sequences of a batch differ in length",
    "filling": "its module fills in the masked positions of a sequence of tokens",
    "ensembles": "its module runs under torch.vmap: no random numbers, no buffers that training changes",
    "fewer_heads": "each of its `blocks` has linear layers `qkv` and `out` for the `heads` of its Config",
    "fewer_hidden": "each of its `blocks` has linear layers `up` and `down` for the `hidden` units of its Config",
    "fewer_layers": "its module has `blocks`, as many as the `depth` of its Config",
}


@dataclass(frozen=True)
class Counts:
    """Parameters, FLOPs and memory of a configuration, computed without building it.

    ``by_group`` sums to ``total``. ``non_embedding`` excludes tables that are looked up rather than multiplied.
    ``active`` are the parameters used for one token (one sample for data without tokens). ``forward_flops`` counts a
    multiply-add as two, per sample; ``attention_flops`` is the part of attention scores and weighted sums, halved where
    causal. ``activation_bytes`` estimates what is saved for backward per sample, in float32 and by plain operations;
    of it, ``score_bytes`` are attention's probabilities, which fused attention does not keep, and ``output_bytes`` the
    logits and what the loss makes of them.
    """

    by_group: Mapping[str, int]
    non_embedding: int
    active: int
    forward_flops: int
    attention_flops: int
    activation_bytes: int
    score_bytes: int = 0
    output_bytes: int = 0

    @property
    def total(self) -> int:
        """All parameters; tied ones once."""
        return sum(self.by_group.values())

    @property
    def active_non_embedding(self) -> int:
        """Active parameters in matrix products: what dials and budgets per parameter refer to."""
        return self.non_embedding - (self.total - self.active)


def check_sequences(symbols: int, vocab_size: int, length: int | None, context: int | None = None) -> None:
    """Raise ``InputError`` when data of ``symbols`` tokens in samples of ``length`` exceeds vocabulary or context."""
    if vocab_size < symbols:
        raise InputError(f"vocab_size: {vocab_size} is less than the data's {symbols} symbols (specials included)")
    if context is not None and length is not None and length > context:
        raise InputError(f"sequence_length = {length} is longer than the context of {context}")


class Decoder(Protocol):
    """The module of a family with the capability ``generation``."""

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for ``capacity`` tokens of ``batch`` sequences."""
        ...

    def __call__(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Append tokens (B, T) to the cache and return their logits (B, T, V)."""
        ...


class Family(Protocol):
    """What every module in ``FAMILIES`` provides: these constants, a frozen dataclass ``Config``, these functions."""

    @property
    def SUMMARY(self) -> str:  # noqa: N802
        """One line for ``scalebench list``."""

    @property
    def DATA(self) -> str:  # noqa: N802
        """The default data source."""

    @property
    def TAKES(self) -> type | tuple[type, ...]:  # noqa: N802
        """The types of data it can be trained on."""

    @property
    def SEQUENCES(self) -> bool:  # noqa: N802
        """Whether a sample is a sequence of ``sequence_length`` tokens."""

    @property
    def IMPLEMENTATIONS(self) -> tuple[str, ...]:  # noqa: N802
        """The names of its implementations."""

    @property
    def CAPABILITIES(self) -> tuple[str, ...]:  # noqa: N802
        """Its capabilities, keys of ``base.CAPABILITIES``."""

    @property
    def SIZES(self) -> Mapping[str, Any]:  # noqa: N802
        """Published Configs by name."""

    @property
    def Config(self) -> Any:  # noqa: N802
        """The frozen dataclass of a configuration."""

    def config_for(self, *args: Any, **kwargs: Any) -> Any:
        """``config_for(params, **fixed)``: the Config with ``params`` non-embedding parameters and the fixed fields."""

    def explicit(self, *args: Any, **kwargs: Any) -> Any:
        """``explicit(**fields)``: the Config with these fields; the others by the family's rules."""

    def defaults(self, data: Any, sequence_length: int | None, /) -> dict[str, Any]:
        """Return the Config fields that the data determines (vocabulary, context)."""

    def build(self, config: Any, implementation: str, /) -> nn.Module:
        """Return the module, initialised from torch's global generator. Only here is torch imported."""

    def count(self, config: Any, sequence_length: int | None = None, /) -> Counts:
        """Count parameters by group, FLOPs and activation bytes of one sample."""

    def parallelize(self, model: nn.Module, mesh: DeviceMesh, /) -> None:
        """Divide the module's parameters between the processes of a mesh, in place (FSDP2)."""

    def task(self, config: Any, data: Any, spec: DataSpec, train: Batching, /) -> Task:
        """Return the task; ``train`` is a trial's spec: batch size, sequence length and seed."""

    def learning_rate(self, config: Any, /) -> float:
        """Return AdamW's default learning rate for this size."""
