"""The memory plan of linear cross entropy: tokens per chunk, and the dtype in which weight's gradient is summed.

With N tokens, width C, V classes and elements of s bytes, a call needs, beyond its inputs and returned gradients,
    float32 sums:    max(w + (4 − s)·V·C, 4·V·C) for s = 2, w for s = 4,      w = s · (tokens per chunk) · (V, padded)
    bfloat16 sums:   w, since they are summed in the returned tensor,
compared with 3·s·N·V − s·C·(N + V) for the eager path: logits, their log-softmax and its gradient, and the gradient of
the logits, before the returned gradients are allocated.

A bfloat16 sum over chunks is rounded once per chunk; each product is summed in float32. If the chunks' terms are
independent, the sum after k of n chunks has √(k/n) of the final size, so that the mean square of all roundings is
(1 + 2 + … + n)/n = (n + 1)/2 times that of one: √2.5 ≈ 1.6 times its error with 4 chunks, less if the terms have the
same sign. Hence there are never more than 4. An incoming gradient that is not a power of two costs one more rounding:
√3.5 ≈ 1.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A workspace of 272 MiB, within limits: chunks large enough for efficient matrix products, but not larger than useful.
# Every chunk reads and writes the whole sum of weight's gradient: 8192 tokens of 50,304 classes take three chunks.
# With 208 MiB they would take four; ``kernels/tools/tuning_loss.py`` has what that saves and times both.
WORKSPACE_BYTES = 272 * 2**20
FEWEST_TOKENS, MOST_TOKENS = 2048, 8192
TOKEN_MULTIPLE = 128  # of the size of a chunk, so that the products have whole tiles
COLUMN_MULTIPLE = 64  # of the elements in a row of the workspace: aligned to 128 bytes for any V
MOST_ROUNDINGS = 4  # of weight's gradient, if summed in bfloat16
EAGER_SHARE = 6  # float32 sums if they need at most a sixth of the eager path's memory


@dataclass(frozen=True)
class Plan:
    """``tokens`` per chunk, the dtype in which weight's gradient is summed, and the peak memory.

    ``peak_bytes`` excludes inputs, returned gradients, losses and scalars.
    """

    tokens: int
    accumulator: torch.dtype
    peak_bytes: int


def row_length(classes: int) -> int:
    """Return the length of the workspace's rows in elements."""
    return -(-classes // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def chunk_tokens(tokens: int, classes: int, dtype: torch.dtype) -> int:
    """Return the tokens per chunk: chunks of about equal size within the limits above."""
    limit = WORKSPACE_BYTES // (row_length(classes) * dtype.itemsize)
    limit = min(max(limit // TOKEN_MULTIPLE * TOKEN_MULTIPLE, FEWEST_TOKENS), MOST_TOKENS)
    return min(_chunk(tokens, -(-max(tokens, 1) // limit)), limit)


def _chunk(tokens: int, chunks: int) -> int:
    """Return the size of ``chunks`` chunks of about equal size: a multiple of TOKEN_MULTIPLE, or all tokens."""
    even = -(-max(tokens, 1) // chunks)
    return min(-(-even // TOKEN_MULTIPLE) * TOKEN_MULTIPLE, max(tokens, 1))


def plan(tokens: int, width: int, classes: int, dtype: torch.dtype) -> Plan:
    """Return the plan for gradients of x (tokens, width) and weight (classes, width) of ``dtype``.

    Sums are float32 for float16, whose range they could exceed, for float32, and for bfloat16 if that needs at most a
    sixth of the eager path's memory, with smaller chunks if necessary (down to FEWEST_TOKENS). Otherwise they have the
    dtype that needs less memory.
    """
    weight, row = width * classes, row_length(classes) * dtype.itemsize
    more = 0 if dtype == torch.float32 else weight
    eager = dtype.itemsize * (3 * tokens * classes - width * (tokens + classes))

    def exact(chunk: int) -> Plan:
        return Plan(chunk, torch.float32, max(chunk * row + (4 - dtype.itemsize) * more, 4 * more))

    largest = chunk = chunk_tokens(tokens, classes, dtype)
    if dtype != torch.bfloat16:
        return exact(chunk)
    while chunk >= min(largest, FEWEST_TOKENS):  # smaller chunks, where float32 sums fit with them
        if EAGER_SHARE * exact(chunk).peak_bytes <= eager:
            return exact(chunk)
        chunk = min(chunk - 1, _chunk(tokens, -(-tokens // chunk) + 1)) if chunk > FEWEST_TOKENS else 0
    chunk, plain = largest, exact(largest)
    chunk = max(chunk, _chunk(tokens, MOST_ROUNDINGS))
    rounded = Plan(chunk, dtype, chunk * row)
    return rounded if rounded.peak_bytes < plain.peak_bytes else plain
