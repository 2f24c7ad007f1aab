"""GPT on the fused kernels: attention, norms with the residual sum, and the loss without logits.

The parameters, their order and their initialisation are those of ``gpt.GPT``, so that a seed gives the same model.
Legend as in ``gpt``: B batch, T time, C width, H heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from scalekernels import layer_norm, linear_cross_entropy, rms_norm
from scalekernels.attention import attention, attention_over_cache
from scalekernels.rotary import rotary
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.causal import Attention
from scalebench.families.gpt import GPT, Block


def mixed(own: Attention, x: Tensor, cache: LayerCache | None) -> Tensor:
    """Mix x (B, T, C) causally over time, and with what the cache holds of earlier times, by the fused kernels.

    Positions are turned on the packed projection, so that backward writes the gradients of q, k and v into one tensor,
    which is what the projection's own backward pass reads; without rotary positions it still does.
    """
    start = 0 if cache is None else cache.length
    tables = (None, None) if own.rotary is None else (own.rotary.cos, own.rotary.sin)
    parts = rotary(own.qkv(x).unflatten(2, (3, own.heads, own.head_dim)), *tables, start=start)
    q, k, v = (part.transpose(1, 2) for part in parts)  # (B, H, T, D)
    if cache is not None:
        k, v = cache.extend(k, v)
    out = attention_over_cache(q, k, v) if start else attention(q, k, v, causal=True)
    return own.out(out.transpose(1, 2).flatten(2))


def add_and_norm(norm: nn.Module, stream: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (norm of the sum, the sum) of stream and update (B, T, C) in one kernel, with the norm's parameters."""
    if isinstance(norm, nn.LayerNorm):
        parameters, apply = {"bias": norm.bias, "eps": norm.eps}, layer_norm
    else:
        assert isinstance(norm, nn.RMSNorm)
        parameters, apply = {"eps": norm.eps}, rms_norm
    if update is None:
        return apply(stream, norm.weight, **parameters), stream
    return apply(update.to(stream.dtype), norm.weight, residual=stream, **parameters)


class FusedBlock(Block):
    """Attention, then MLP; what the MLP adds is left to the next norm, which sums and norms in one pass."""

    def forward(  # type: ignore[override]
        self, stream: Tensor, update: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take the stream (B, T, C) and what is still to be added to it; return the same two."""
        normed, stream = add_and_norm(self.norm1, stream, update)
        normed, stream = add_and_norm(self.norm2, stream, mixed(self.attention, normed, cache))
        return stream, self.down(F.gelu(self.up(normed), approximate="tanh"))


class FusedGPT(GPT):
    """Tokens (B, T) to logits (B, T, V), or with targets (B, T) to the loss of each token, or their mean, without."""

    BLOCK: type[nn.Module] = FusedBlock
    GIVES_LOSSES = True  # a task asks the model for the losses instead of for logits

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return what the output matrix is applied to, (B, T, C). What the cache holds came before ``tokens``."""
        stream, update = self.embedded(tokens, cache), None
        for block, layer in self.layers(cache):
            stream, update = block(stream, update, layer)
        return add_and_norm(self.norm, stream, update)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, T, V) of ``hidden``'s output (B, T, C)."""
        return self.head(hidden)

    def losses(self, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy in nats of ``hidden``'s output (B, T, C) against targets (B, T)."""
        return linear_cross_entropy(hidden, self.head.weight, targets, reduction=reduction)
