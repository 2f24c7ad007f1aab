"""GPT on the fused kernels: attention, norms fused with the residual sum, and the loss without logits in memory.

The parameters, their order and their initialisation are those of ``decoder.GPT``, so that a seed gives the same model.
Legend as in ``gpt``: B batch, T time, C width, H heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from scalekernels import layer_norm, linear_cross_entropy, rms_norm
from scalekernels.attention import attention, attention_over_cache
from scalekernels.rotary import rotary
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.modules.decoder import GPT, CausalAttention, DecoderBlock


def fused_attention(layer: CausalAttention, x: Tensor, cache: LayerCache | None) -> Tensor:
    """Apply an attention layer to x (B, T, C), and the tokens in the cache, by the fused kernels.

    The rotary kernel works on the packed projection, so that backward writes the gradients of q, k and v into the one
    tensor that the projection's backward pass reads. It is called without rotary positions too, for the same reason.
    """
    start = 0 if cache is None else cache.length
    tables = (None, None) if layer.rotary is None else (layer.rotary.cos, layer.rotary.sin)
    parts = rotary(layer.qkv(x).unflatten(2, (3, layer.heads, layer.head_dim)), *tables, start=start)
    q, k, v = (part.transpose(1, 2) for part in parts)  # (B, H, T, D)
    if cache is not None:
        k, v = cache.extend(k, v)
    out = attention_over_cache(q, k, v) if start else attention(q, k, v, causal=True)
    return layer.out(out.transpose(1, 2).flatten(2))


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


class FusedBlock(DecoderBlock):
    """Attention, then MLP; the MLP's output is added by the next norm, in the same pass."""

    def forward(  # type: ignore[override]
        self, stream: Tensor, update: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take the stream (B, T, C) and the update not yet added to it; return the same two."""
        normed, stream = add_and_norm(self.norm1, stream, update)
        normed, stream = add_and_norm(self.norm2, stream, fused_attention(self.attention, normed, cache))
        return stream, self.down(F.gelu(self.up(normed), approximate="tanh"))


class FusedGPT(GPT):
    """Tokens (B, T) to logits (B, T, V), or with targets (B, T) to the loss per token or its mean, without logits."""

    BLOCK: type[nn.Module] = FusedBlock
    GIVES_LOSSES = True

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the final norm's output, (B, T, C). ``tokens`` follow those in the cache."""
        stream, update = self.embedded(tokens, cache), None
        for block, layer in self.layers(cache):
            stream, update = block(stream, update, layer)
        return add_and_norm(self.norm, stream, update)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the final norm's output (B, T, C)."""
        return self.head(hidden)

    def losses(self, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy in nats of the final norm's output (B, T, C) against targets (B, T)."""
        return linear_cross_entropy(hidden, self.head.weight, targets, reduction=reduction)
