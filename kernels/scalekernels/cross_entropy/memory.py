"""How linear cross entropy spends memory: tokens to a chunk, and the dtype in which weight's gradient is summed.

With N tokens, width C, V classes and numbers of s bytes, one call holds above its inputs and the gradients it returns
    float32 sums:    max(w + (4 − s)·V·C, 4·V·C) for s = 2, w for s = 4,      w = s · (tokens to a chunk) · (V, padded)
    bfloat16 sums:   w, for they are made in the tensor that is returned,
against 3·s·N·V − s·C·(N + V) of the eager path: logits, their log-softmax and its gradient, and the gradient of the
logits, at a time when what is returned has not been made.

A sum over chunks that is kept in bfloat16 is rounded once a chunk, each product having been summed in float32. Where
the chunks' terms are independent, the sum after k of n chunks has √(k/n) of the final size, so that the roundings' mean
square is (1 + 2 + … + n)/n = (n + 1)/2 of that of one rounding: √2.5 ≈ 1.6 times its error with 4 chunks, less where
the terms have one sign. That is why there are never more than 4. A gradient coming in that is no power of two costs
one rounding more: √3.5 ≈ 1.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A workspace of 272 MiB, but chunks of no fewer tokens than keep matrix products large, nor of more than help them.
# Each chunk reads and writes the whole sum of weight's gradient: 8192 tokens of 50,304 classes take three chunks.
WORKSPACE_BYTES = 272 * 2**20
FEWEST_TOKENS, MOST_TOKENS = 2048, 8192
TOKEN_MULTIPLE = 128  # a chunk's size, so that the products have whole tiles
COLUMN_MULTIPLE = 64  # numbers in a row of the workspace: aligned to 128 bytes for any V
MOST_ROUNDINGS = 4  # of weight's gradient, where it is summed in bfloat16
EAGER_SHARE = 6  # float32 sums where one call holds at most a sixth of what the eager path holds


@dataclass(frozen=True)
class Plan:
    """``tokens`` to a chunk, the dtype of the sum that is weight's gradient, and what that holds at its peak.

    ``peak_bytes`` is above inputs and returned gradients, but for losses and single numbers.
    """

    tokens: int
    accumulator: torch.dtype
    peak_bytes: int


def row_length(classes: int) -> int:
    """Return the length of the workspace's rows, in numbers."""
    return -(-classes // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def chunk_tokens(tokens: int, classes: int, dtype: torch.dtype) -> int:
    """Return how many tokens' logits the workspace holds: chunks of about one size within the memory rule above."""
    limit = WORKSPACE_BYTES // (row_length(classes) * dtype.itemsize)
    limit = min(max(limit // TOKEN_MULTIPLE * TOKEN_MULTIPLE, FEWEST_TOKENS), MOST_TOKENS)
    return min(_chunk(tokens, -(-max(tokens, 1) // limit)), limit)


def _chunk(tokens: int, chunks: int) -> int:
    """Return the size of ``chunks`` chunks of about one size: a multiple of TOKEN_MULTIPLE, or all tokens."""
    even = -(-max(tokens, 1) // chunks)
    return min(-(-even // TOKEN_MULTIPLE) * TOKEN_MULTIPLE, max(tokens, 1))


def plan(tokens: int, width: int, classes: int, dtype: torch.dtype) -> Plan:
    """Return how gradients of x (tokens, width) and weight (classes, width) of ``dtype`` are made.

    Sums are float32 wherever that stays within a sixth of the eager path's memory, always for float16, whose range
    they would leave, and for float32, where they are what is returned. Else they are what holds less. Chunks become
    smaller than the workspace allows, down to FEWEST_TOKENS, where float32 sums fit with them alone.
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
