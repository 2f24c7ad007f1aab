"""GPT on the fused kernels in one dtype, that of the weights: residual stream, norms, attention and the loss's input.

``gpt_triton`` runs under autocast: its residual stream and norms are float32, and each matrix product casts its input
and its weight. Here nothing is cast: ``mixed_precision.WorkingCopy`` has 16-bit copies of the weights, cast once per
optimizer step, and activations keep the dtype of the embedding. GELU, the only operation between the kernels, is
elementwise in float32; ``torch.compile`` fuses it into one pass forward and one backward. In eager mode it is correct
but slow.

All blocks have the same form, so that they share one compilation: each takes the stream and its norm, and returns
the new stream and its norm with the next block's weights.

The parameters, their order and their initialisation are those of ``decoder.GPT``. Legend as there: B batch, T time, C
width, H heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from scalekernels import layer_norm, rms_norm
from torch import Tensor, nn

from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.decoder import Config
from scalebench.families.modules.decoder import DecoderBlock, Rotary
from scalebench.families.modules.gpt_triton import FusedGPT, fused_attention

SQRT_8_OVER_PI = 1.5957691216057308


def gelu(x: Tensor) -> Tensor:
    """Return GELU in its tanh form, (…) in the dtype of ``x``: ½ (1 + tanh u) = sigmoid(2 u), one exponential."""
    y = x.float()
    return (y * torch.sigmoid(SQRT_8_OVER_PI * (y + 0.044715 * y * y * y))).to(x.dtype)


def normed(norm: nn.Module, x: Tensor, weights: tuple[Tensor, ...], residual: Tensor | None = None) -> Any:
    """Return the norm of x (B, T, C) with these weights; with ``residual``, (norm of the sum, the sum)."""
    if isinstance(norm, nn.LayerNorm):
        return layer_norm(x, *weights, eps=norm.eps, residual=residual)
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps is not None
    return rms_norm(x, *weights, eps=norm.eps, residual=residual)


def weights_of(norm: nn.Module) -> tuple[Tensor, ...]:
    """Return the weight of an RMS norm, or weight and bias of a layer norm."""
    return (norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else (norm.weight,)  # type: ignore[return-value]


class OneTypeBlock(DecoderBlock):
    """Attention, then MLP, in the dtype of the input."""

    def forward(  # type: ignore[override]
        self, stream: Tensor, x: Tensor, following: tuple[Tensor, ...], cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take the stream (B, T, C) and its norm x; return the new stream and its norm by ``following`` weights."""
        x, stream = normed(self.norm2, fused_attention(self.attention, x, cache), weights_of(self.norm2), stream)
        x, stream = normed(self.norm1, self.down(gelu(self.up(x))), following, stream)
        return stream, x


class OneTypeGPT(FusedGPT):
    """Tokens (B, T) to logits (B, T, V), or with targets (B, T) to losses, all in the dtype of the embedding."""

    BLOCK: type[nn.Module] = OneTypeBlock
    KEEPS_TYPE = True

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__(config, implementation)
        if config.positions == "rotary":
            rotary = Rotary(config.head_dim, config.context)  # one table for all layers stays in the L2 cache
            for block in self.blocks:
                cast(OneTypeBlock, block).attention.rotary = rotary

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the final norm's output, (B, T, C). ``tokens`` follow those in the cache."""
        stream = self.embedded(tokens, cache)
        norms: list[Any] = [*(block.norm1 for block in self.blocks), self.norm]
        x = normed(norms[0], stream, weights_of(norms[0]))
        for (block, layer), following in zip(self.layers(cache), norms[1:], strict=True):
            stream, x = block(stream, x, weights_of(following), layer)
        return x
