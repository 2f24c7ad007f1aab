"""The Triton functions behind ``scalekernels.rotary``, and the table of tiles that they are launched with.

A program takes TOKENS tokens of one sequence and one of q, k and v, and walks over its heads, HEADS at a time. It holds
the two halves of the features as two tiles (TOKENS, HEADS, HALF), so that what is turned together lies in one thread,
and the cosines and sines of its tokens in registers for all heads. A thread loads and stores 16 bytes at a time; the
two halves of a head are read in one go, a head after the other, so that whole lines of the caches are used.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from scalekernels.rounding import rounded


@dataclass(frozen=True)
class Tile:
    """Tokens and heads that one program holds at a time, and the warps that share them."""

    tokens: int
    heads: int
    num_warps: int


# Tiles by head dimension: 2048 numbers of each half, so that a thread has two loads of 16 bytes of each half in flight
# in 16 bits (four in float32). Heads beyond the last are masked: 12, 16 and 32 heads leave none.
TILES = {dimension: Tile(1024 // dimension, 4, 4) for dimension in (16, 32, 64, 128, 256)}
NUM_STAGES = 1


@triton.jit
def load_angles(cos, sin, token, present, start, table_stride, HALF: tl.constexpr):
    """Cosines and sines (TOKENS, HALF) of the places ``start`` + token."""
    at = (start + token)[:, None] * table_stride + tl.arange(0, HALF)[None, :]
    cosine = tl.load(cos + at, mask=present[:, None], other=0.0)
    sine = tl.load(sin + at, mask=present[:, None], other=0.0)
    return cosine, sine


@triton.jit
def turned(source, out, cosine, sine, token, present, heads, token_stride, head_stride, out_stride,
           HALF: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    """Turn all heads of the tokens by the angle whose cosine and sine are given, in float32, rounded once."""
    column = tl.arange(0, HALF)[None, None, :]
    for begin in range(0, heads, HEADS):
        head = (begin + tl.arange(0, HEADS)).to(tl.int64)[None, :, None]
        inside = present[:, None, None] & (head < heads)
        at = token[:, None, None] * token_stride + head * head_stride + column
        first = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source + at + HALF, mask=inside, other=0.0).to(tl.float32)
        to = token[:, None, None] * out_stride + head * (2 * HALF) + column
        result = first * cosine[:, None, :] - second * sine[:, None, :]
        tl.store(out + to, rounded(result, out.dtype.element_ty), mask=inside)
        result = second * cosine[:, None, :] + first * sine[:, None, :]
        tl.store(out + to + HALF, rounded(result, out.dtype.element_ty), mask=inside)


@triton.jit
def copied(source, out, token, present, heads, token_stride, head_stride, out_stride,
           HALF: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    """Copy all heads of the tokens, to the bit."""
    column = tl.arange(0, 2 * HALF)[None, None, :]
    for begin in range(0, heads, HEADS):
        head = (begin + tl.arange(0, HEADS)).to(tl.int64)[None, :, None]
        inside = present[:, None, None] & (head < heads)
        value = tl.load(source + token[:, None, None] * token_stride + head * head_stride + column, mask=inside)
        tl.store(out + token[:, None, None] * out_stride + head * (2 * HALF) + column, value, mask=inside)


@triton.jit(do_not_specialize=["start", "length"])
def forward(
    qkv, out, cos, sin, start, length, heads, batch_stride, token_stride, part_stride, head_stride, table_stride,
    HALF: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Turn q and k of qkv (B, T, 3, H, D) into out (B, T, 2, H, D); programs are (batch, tile of tokens, q or k)."""
    part = (tl.program_id(0) % 2).to(tl.int64)
    tile = tl.program_id(0) // 2
    tiles = tl.cdiv(length, TOKENS)
    batch = (tile // tiles).to(tl.int64)
    token = (tile % tiles * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    present = token < length
    cosine, sine = load_angles(cos, sin, token, present, start, table_stride, HALF)
    width = heads * (2 * HALF)
    turned(
        qkv + batch * batch_stride + part * part_stride, out + (batch * length * 2 + part) * width, cosine, sine,
        token, present, heads, token_stride, head_stride, 2 * width, HALF, HEADS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["start", "length"])
def gradients(
    dq, dk, dv, out, cos, sin, start, length, heads, q_batch, q_token, q_head, k_batch, k_token, k_head,
    v_batch, v_token, v_head, table_stride, HALF: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Turn dq and dk (B, T, H, D) back, and put them and dv into out (B, T, 3, H, D); ``cos`` None: copy all three.

    Turning back is turning by the negative angle, which is the transpose of turning. Programs are (batch, tile of
    tokens, q or k or v).
    """
    part = (tl.program_id(0) % 3).to(tl.int64)
    tile = tl.program_id(0) // 3
    tiles = tl.cdiv(length, TOKENS)
    batch = (tile // tiles).to(tl.int64)
    token = (tile % tiles * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    present = token < length
    width = heads * (2 * HALF)
    out += (batch * length * 3 + part) * width
    if part == 2:
        copied(dv + batch * v_batch, out, token, present, heads, v_token, v_head, 3 * width, HALF, HEADS)
    elif cos is not None:
        cosine, sine = load_angles(cos, sin, token, present, start, table_stride, HALF)
        if part == 0:
            turned(
                dq + batch * q_batch, out, cosine, -sine, token, present, heads, q_token, q_head, 3 * width, HALF, HEADS
            )
        else:
            turned(
                dk + batch * k_batch, out, cosine, -sine, token, present, heads, k_token, k_head, 3 * width, HALF, HEADS
            )
    elif part == 0:
        copied(dq + batch * q_batch, out, token, present, heads, q_token, q_head, 3 * width, HALF, HEADS)
    else:
        copied(dk + batch * k_batch, out, token, present, heads, k_token, k_head, 3 * width, HALF, HEADS)
