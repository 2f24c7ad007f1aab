"""The Triton functions behind ``scalekernels.cross_entropy``, and the blocks that they are launched with.

Logits are (rows, stride) with ``stride`` ≥ the number of classes V and a multiple of 16 numbers: masks that end at the
stride keep loads and stores 16 bytes wide for any V. What lies between V and the stride is written and never used.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from scalekernels.compilation import Compilation
from scalekernels.rounding import rounded

# The evidence is what ptxas says for sm_80, sm_90 and sm_100: no spills (but in one rare variant), 16-byte loads and
# stores, at most 64 registers in 16 bits without a soft cap, so that two programs share a multiprocessor of sm_90. Two
# rows of 100 KB on each of 132 multiprocessors are 26 MB: the second pass over a row finds it in the L2 cache (50 MB),
# and the loads of one row overlap with the arithmetic of the other.
BLOCK = 4096  # logits of a tile: 8 per thread
NUM_WARPS = 16
WEIGHED_BLOCK = 2048  # with class weights, whose numbers take registers: more than 64, for which 16 warps have no room
WEIGHED_WARPS = 8
SCALE_BLOCK = 4096
SCALE_WARPS = 8
NUM_STAGES = 1  # nothing here is pipelined


def tiles(itemsize: int, capped: bool, loss: bool, weighed: bool) -> int:
    """Return the tiles of an iteration: as many loads of 16 bytes in flight per thread as registers allow (1 to 4)."""
    if weighed:
        return 1
    if itemsize == 4:
        return 1 if capped else 2
    return 4 if loss and not capped else 2


LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-2e38)  # stands for "no logit yet": unlike those of −inf, its differences are never nan


@triton.jit
def capped(value, cap):
    """cap · tanh(value / cap), and its derivative 1 − tanh²; with t = exp(−2|u|), tanh|u| = (1 − t) / (1 + t).

    Below |u| = 0.2 the difference cancels and the series to u⁷ takes over (the next term is 6e-8 of the sum there).
    1 − tanh² = 4t / (1 + t)² does not cancel anywhere.
    """
    u = value / cap
    size = tl.abs(u)
    t = tl.exp2(size * LOG2_E * -2.0)
    square = u * u
    series = size * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 - square * (17.0 / 315))))
    tanh = tl.where(size < 0.2, series, (1.0 - t) / (1.0 + t))
    return cap * tl.where(u < 0, -tanh, tanh), 4.0 * t / ((1.0 + t) * (1.0 + t))


@triton.jit
def load_logits(
    logits, column, classes, stride, softcap, CAPPED: tl.constexpr, WHOLE: tl.constexpr, KEEP: tl.constexpr
):
    """A tile of a row in float32, −inf beyond the last class, and the derivative of the soft cap.

    WHOLE tiles have no column beyond the last class. KEEP asks the caches to keep what another pass will read.
    """
    policy: tl.constexpr = "evict_last" if KEEP else "evict_first"
    if WHOLE:
        value = tl.load(logits + column, eviction_policy=policy).to(tl.float32)
    else:
        present = column < classes
        value = tl.load(logits + column, mask=column < stride, other=0.0, eviction_policy=policy).to(tl.float32)
        value = tl.where(present, value, 0.0)
    slope = 1.0
    if CAPPED:
        value, slope = capped(value, softcap)
    if not WHOLE:
        value = tl.where(present, value, float("-inf"))
    return value, slope


@triton.jit
def add_tile(highest, total, value):
    """Running maximum and sum of exponentials of BLOCK columns, with the tiles (T, BLOCK) of ``value`` added.

    Each thread keeps its own: nothing is exchanged between threads until the row is over.
    """
    new = tl.maximum(highest, tl.max(value, axis=0))
    terms = tl.exp2((value - new[None, :]) * LOG2_E)
    return new, total * tl.exp2((highest - new) * LOG2_E) + tl.sum(terms, axis=0)


@triton.jit
def class_weights(class_weight, column, classes, WHOLE: tl.constexpr):
    """The weights of a tile's classes, 0 beyond the last."""
    return tl.load(class_weight + column) if WHOLE else tl.load(class_weight + column, mask=column < classes, other=0.0)


@triton.jit
def add_weighed(weighed, class_weight, column, classes, value, WHOLE: tl.constexpr):
    """Sum over classes of weight · logit, with the tiles (T, BLOCK) of ``value`` added."""
    if class_weight is None:
        return weighed
    else:  # noqa: RET505 - a jit function returns from both branches or from neither
        value = value if WHOLE else tl.where(column < classes, value, 0.0)
        return weighed + tl.sum(class_weights(class_weight, column, classes, WHOLE) * value, axis=0)


@triton.jit
def row_statistics(
    logits, classes, stride, softcap, class_weight,
    CAPPED: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The largest logit of a row and Σ exp(logit − largest), in one pass and two reductions over the threads.

    With ``class_weight`` also Σ weight · logit, else 0.
    """
    column = tl.arange(0, TILES)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    rest = tl.arange(0, BLOCK)[None, :]
    whole = classes // (TILES * BLOCK) * (TILES * BLOCK)
    highest = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    weighed = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, whole, TILES * BLOCK):
        value, _ = load_logits(logits, start + column, classes, stride, softcap, CAPPED, True, KEEP)
        highest, total = add_tile(highest, total, value)
        weighed = add_weighed(weighed, class_weight, start + column, classes, value, True)
    for start in range(whole, classes, BLOCK):
        value, _ = load_logits(logits, start + rest, classes, stride, softcap, CAPPED, False, KEEP)
        highest, total = add_tile(highest, total, value)
        weighed = add_weighed(weighed, class_weight, start + rest, classes, value, False)
    top = tl.max(highest, axis=0)
    total = tl.sum(total * tl.exp2((highest - top) * LOG2_E), axis=0)
    if class_weight is None:
        return top, total, 0.0
    else:  # noqa: RET505 - as above
        return top, total, tl.sum(weighed, axis=0)


@triton.jit
def write_gradient(
    logits, column, classes, stride, softcap, class_weight, top, share, label, factor, spread,
    CAPPED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Replace a tile of logits by (exp(z − top) · share − [label] · factor − class_weight · spread) · slope."""
    value, slope = load_logits(logits, column, classes, stride, softcap, CAPPED, WHOLE, False)
    gradient = tl.exp2((value - top) * LOG2_E) * share
    if class_weight is not None:
        gradient -= class_weights(class_weight, column, classes, WHOLE) * spread
    gradient = tl.where(column == label, gradient - factor, gradient) * slope
    gradient = rounded(gradient, logits.dtype.element_ty)
    if WHOLE:
        tl.store(logits + column, gradient)
    else:
        tl.store(logits + column, gradient, mask=column < stride)


@triton.jit
def losses(  # noqa: C901, PLR0912 - each branch is one optional pointer or constant
    logits, target, loss, row_gradient, classes, stride, ignore_index, softcap, z_loss, class_weight, smoothing,
    CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The loss of one row; with GRADIENT the logits become their gradient, times ``row_gradient`` where it is given.

    loss = logsumexp(z) − z[target] + z_loss · logsumexp(z)², z the (capped) logits; an ignored row has loss and
    gradient 0. A target out of range, which the host cannot see without waiting for the device, makes them nan.

    With ``class_weight`` w (one per class and then their sum, float32) and ``smoothing`` s, both None or neither, the
    first two terms are (1 − s) · w[target] · (logsumexp(z) − z[target]) + s / classes · Σ w · (logsumexp(z) − z).
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(target + row)
    if label == ignore_index:
        if loss is not None:
            tl.store(loss + row, 0.0)
        if GRADIENT:
            for start in range(0, stride, BLOCK):
                column = start + tl.arange(0, BLOCK)
                zero = tl.zeros((BLOCK,), logits.dtype.element_ty)
                tl.store(logits + column, zero, mask=column < stride)
    else:
        valid = (label >= 0) & (label < classes)
        wanted = tl.load(logits + label, mask=valid, other=0.0).to(tl.float32)
        if CAPPED:
            wanted, _slope_there = capped(wanted, softcap)
        top, total, weighed = row_statistics(
            logits, classes, stride, softcap, class_weight, CAPPED, GRADIENT, BLOCK, TILES
        )  # fmt: skip
        log_total = tl.log2(total) * LN_2
        normaliser = top + log_total
        own, spread, amount = 1.0, 0.0, 1.0  # factors of the target's term, of each class's and of the normaliser
        if class_weight is not None:
            own = tl.load(class_weight + label, mask=valid, other=0.0) * (1.0 - smoothing)
            spread = smoothing / classes
            mass = tl.load(class_weight + classes)
            amount = own + spread * mass
        if loss is not None:
            entropy = (top - wanted) + log_total
            if class_weight is not None:
                # Without smoothing a logit of −inf, of which ``weighed`` is made, is nothing to this loss.
                entropy = own * entropy + spread * tl.where(spread > 0, normaliser * mass - weighed, 0.0)
            result = entropy + z_loss * normaliser * normaliser
            tl.store(loss + row, tl.where(valid, result, float("nan")))
        if GRADIENT:
            factor = 1.0
            if row_gradient is not None:
                factor = tl.load(row_gradient + row)
            factor = tl.where(valid, factor, float("nan"))
            share = (amount + 2.0 * z_loss * normaliser) / total * factor
            spread = spread * factor
            factor = own * factor
            hit = tl.where(valid, label, -1).to(tl.int32)
            column = tl.arange(0, TILES)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
            whole = classes // (TILES * BLOCK) * (TILES * BLOCK)
            for start in range(0, whole, TILES * BLOCK):
                write_gradient(
                    logits, start + column, classes, stride, softcap, class_weight, top, share, hit, factor, spread,
                    CAPPED, True,
                )  # fmt: skip
            for start in range(whole, classes, BLOCK):
                rest = start + tl.arange(0, BLOCK)[None, :]
                write_gradient(
                    logits, rest, classes, stride, softcap, class_weight, top, share, hit, factor, spread, CAPPED, False
                )  # fmt: skip


@triton.jit
def scaled(gradient, factor, out, size, BLOCK: tl.constexpr):
    """Gradient · factor, a number on the device, in float32, rounded once to the dtype of ``out``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(out + at, rounded(value, out.dtype.element_ty), mask=at < size)


@triton.jit
def scale(gradient, factor, size, BLOCK: tl.constexpr):
    """Gradient · factor in place; a factor of 1, the usual one, moves nothing."""
    number = tl.load(factor)
    if number != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32) * number
        tl.store(gradient + at, rounded(value, gradient.dtype.element_ty), mask=at < size)


def compilations(arch: int) -> Iterator[Compilation]:
    """Every variant of the three kernels, the same for each of the three architectures."""
    del arch
    for dtype in ("fp16", "bf16", "fp32"):
        for capped, weighed in itertools.product((False, True), (False, True)):
            options: dict[str, Any] = {"CAPPED": capped, "GRADIENT": True}
            if not weighed:
                options |= {"class_weight": None, "smoothing": None}
            yield _losses_compilation("loss", dtype, {**options, "GRADIENT": False, "row_gradient": None})
            yield _losses_compilation("both", dtype, {**options, "row_gradient": None})
            if dtype != "fp16":  # whose gradients are divided by the number of tokens at the end
                yield _losses_compilation("both weighed", dtype, options)
            yield _losses_compilation("gradient", dtype, {**options, "loss": None})
        types = {"gradient": f"*{dtype}", "factor": "*fp32", "size": "i32"}
        yield _compilation(scale, dtype, {"BLOCK": SCALE_BLOCK}, SCALE_WARPS, types, tuple(types))
    for dtype in ("fp16", "bf16"):
        types = {"gradient": "*fp32", "factor": "*fp32", "out": f"*{dtype}", "size": "i32"}
        yield _compilation(scaled, f"fp32 to {dtype}", {"BLOCK": SCALE_BLOCK}, SCALE_WARPS, types, tuple(types))


def _losses_compilation(role: str, dtype: str, variant: dict[str, Any]) -> Compilation:
    types = {
        "logits": f"*{dtype}", "target": "*i64", "loss": "*fp32", "row_gradient": "*fp32", "classes": "i32",
        "stride": "i32", "ignore_index": "i32", "softcap": "fp32", "z_loss": "fp32",
        "class_weight": "*fp32", "smoothing": "fp32",
    }  # fmt: skip
    weighed = "class_weight" not in variant
    label = f"{role} {dtype}{' softcap' * variant['CAPPED']}{' classes weighed' * weighed}"
    constants = {
        **variant,
        "BLOCK": WEIGHED_BLOCK if weighed else BLOCK,
        "TILES": tiles(4 if dtype == "fp32" else 2, variant["CAPPED"], "loss" not in variant, weighed),
    }
    aligned = ("logits", "stride", *["class_weight"] * weighed)
    warps = WEIGHED_WARPS if weighed else NUM_WARPS
    return _compilation(losses, label, constants, warps, types, aligned, _SPILLS_ALLOWED.get(label, ""))


# ptxas 12.8 keeps to 64 registers of its own accord, where 255 are allowed.
_SPILLS_ALLOWED = {"both fp16 softcap classes weighed": "8 bytes on sm_90, one number of a rare variant"}


def _compilation(
    function: Any,
    label: str,
    constants: dict[str, Any],
    num_warps: int,
    types: dict[str, str],
    aligned: tuple[str, ...],
    spills_allowed: str = "",
) -> Compilation:
    return Compilation(
        kernel=f"cross_entropy.{function.__name__}",
        label=label,
        function=function,
        signature={name: "constexpr" if name in constants else types[name] for name in function.arg_names},
        constants=constants,
        num_warps=num_warps,
        num_stages=NUM_STAGES,
        work=constants["BLOCK"] * constants.get("TILES", 1),
        aligned=aligned,
        vector_bytes=16,
        spills_allowed=spills_allowed,
    )
