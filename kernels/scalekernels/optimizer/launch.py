"""The launches of the fused optimizers, as one custom operation, and every configuration they can launch.

A step is three kinds of launch, none of which waits for the device: with clipping, one per dtype that sums the squares
of the gradients; one of a single program that finishes the norm, counts steps and forms every tensor's scalars; one per
dtype that updates all its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import triton.language as tl
from torch import Tensor

from scalekernels.cache_keys import settled
from scalekernels.compilation import ARCHITECTURES, Compilation
from scalekernels.device import INTERPRETED
from scalekernels.optimizer import kernels, preparation
from scalekernels.optimizer.tables import TABLES, Tables

POINTEES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}
POINTER_NAMES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
ELEMENTS = kernels.BLOCK // (32 * kernels.NUM_WARPS)  # of an iteration's, in one thread
TABLE_NAMES = ("pointers", "chunks", "scalars", "keys", "settings", "partials", "norm")


@dataclass(frozen=True)
class Variant:
    """What determines the machine code of an update: the algorithm, and which of the three states it has.

    ``first`` is a moment with a sign (exp_avg, momentum_buffer), ``second`` one without (exp_avg_sq, sum, square_avg),
    ``third`` the mean gradient of centred RMSprop.
    """

    algorithm: str
    first: bool = False
    second: bool = False
    third: bool = False

    @property
    def label(self) -> str:
        """The algorithm and its optional states."""
        parts = [self.algorithm]
        if self.first and self.algorithm in ("sgd", "rmsprop"):
            parts.append("momentum")
        if self.third:
            parts.append("centered")
        return " ".join(parts)


VARIANTS = (
    Variant("adam", first=True, second=True),
    Variant("sgd"),
    Variant("sgd", first=True),
    Variant("adagrad", second=True),
    Variant("rmsprop", second=True),
    Variant("rmsprop", first=True, second=True),
    Variant("rmsprop", second=True, third=True),
    Variant("rmsprop", first=True, second=True, third=True),
    Variant("lion", first=True),
)
ALGORITHMS = tuple(dict.fromkeys(variant.algorithm for variant in VARIANTS))


def block_size(block: int) -> int:
    """Return the elements of one iteration; half a chunk in the interpreter, whose time depends on calls."""
    return kernels.CHUNK // 2 if INTERPRETED else block


def update_constants(variant: Variant, param: torch.dtype, state: torch.dtype) -> dict[str, object]:
    """Return the constants of an update kernel for parameters and state of these dtypes.

    State is promised as many bytes as make a thread hold as many neighbours of it as 16 bytes hold of the parameter,
    so that one layout serves all; of 8-bit state it holds 8, so that a warp holds one whole block of 256 and finds the
    largest magnitude without shared memory.
    """
    second = torch.uint8 if state == torch.int8 else state
    return {
        "ALGORITHM": variant.algorithm,
        "M": variant.first,
        "V": variant.second,
        "C": variant.third,
        "PARAM_TYPE": POINTEES[param],
        "FIRST_TYPE": POINTEES[state],
        "SECOND_TYPE": POINTEES[second],
        "STATE_BYTES": min(16, max(16 // param.itemsize, 8 if state == torch.int8 else 0) * state.itemsize),
        "ROUNDS": torch.bfloat16 in (param, state) or state == torch.int8,
        "CHUNK": kernels.CHUNK,
        "BLOCK": block_size(kernels.BLOCK),
        "TAIL": block_size(kernels.TAIL),
        "STAGES": kernels.STAGES,
    }


def norm_constants(param: torch.dtype) -> dict[str, object]:
    """Return the constants of the kernel that sums squares of gradients."""
    return {"PARAM_TYPE": POINTEES[param], "CHUNK": kernels.CHUNK, "BLOCK": block_size(kernels.NORM_BLOCK)}


def advance_constants(algorithm: str, clip: bool) -> dict[str, object]:
    """Return the constants of the kernel that counts steps and computes scalars."""
    return {"ALGORITHM": algorithm, "CLIP": clip, "BLOCK": kernels.ADVANCE_BLOCK, "TENSORS": kernels.ADVANCE_TENSORS}


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >= 1 << 31 else bits


def take_step(
    tables_id: int,
    algorithm: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    steps: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    third: Sequence[Tensor],
    first_scales: Sequence[Tensor],
    second_scales: Sequence[Tensor],
    groups: Sequence[int],
    options: Tensor,
    norm: Tensor,
    max_grad_norm: float | None,
    stochastic_rounding: bool,
    seed: int,
) -> None:
    """Update parameters and state in place; ``grads`` may have None, and is not modified.

    ``steps`` are float32 of shape [], ``options`` float64 [groups, OPTIONS], ``norm`` float32 [] (written if
    ``max_grad_norm`` is given). ``tables_id`` names the tables to keep between calls (``tables.TABLES``);
    the tables are checked against the tensors of every call, so that an unknown number costs time and nothing else.
    ``optimizer_step`` is the same as an operation, at the price of the dispatcher's time per tensor.
    """
    if not params:
        return
    tables = TABLES.get(tables_id) or Tables()
    tables.bind(params, grads, groups, [steps, first, second, third, first_scales, second_scales])
    variant = Variant(algorithm, bool(first), bool(second), bool(third))
    launch_step(tables, variant, options, norm, max_grad_norm, stochastic_rounding, seed)


def launch_step(
    tables: Tables,
    variant: Variant,
    options: Tensor,
    norm: Tensor,
    max_grad_norm: float | None,
    stochastic_rounding: bool,
    seed: int,
) -> None:
    """Update the tensors that the tables describe; arguments as of ``take_step``."""
    with torch.cuda.device_of(tables.pointers):
        if max_grad_norm is not None:
            launch_norm(tables, tables.tensors)
        low, high = _signed(seed & 0xFFFFFFFF), _signed(seed >> 32 & 0xFFFFFFFF)
        settled(preparation.advance_kernel)[(-(-tables.tensors // kernels.ADVANCE_TENSORS),)](
            tables.pointers, options, tables.partials, norm, tables.scalars, tables.keys, tables.tensors, tables.count,
            float("inf") if max_grad_norm is None else max_grad_norm, low, high,
            **advance_constants(variant.algorithm, max_grad_norm is not None),
            num_warps=kernels.NUM_WARPS, num_stages=1,
        )  # fmt: skip
        for dtype, chunks in tables.chunks.items():
            settled(kernels.update_kernel)[(len(chunks),)](
                tables.pointers, chunks, tables.scalars, tables.keys, tables.tensors, int(stochastic_rounding),
                **update_constants(variant, dtype, tables.state_dtype), num_warps=kernels.NUM_WARPS, num_stages=1,
            )  # fmt: skip


optimizer_step = torch.library.custom_op(
    "scalekernels::optimizer_step",
    take_step,
    mutates_args=("params", "steps", "first", "second", "third", "first_scales", "second_scales", "norm"),
)


@optimizer_step.register_fake
def _(*_arguments: object) -> None:
    return None


def launch_norm(tables: Tables, n: int) -> None:
    """Write the sum of squares of every chunk of every gradient to ``tables.partials``."""
    done = 0
    for dtype, chunks in tables.chunks.items():
        settled(preparation.norm_kernel)[(len(chunks),)](
            tables.pointers, chunks, tables.partials, n, done, **norm_constants(dtype),
            num_warps=kernels.NUM_WARPS, num_stages=1,
        )  # fmt: skip
        done += len(chunks)


def most_instructions(variant: Variant, param: torch.dtype, state: torch.dtype) -> float | None:
    """Return the number of instructions per element up to which Adam is memory-bound on sm_90.

    132 multiprocessors issue 128 a cycle, 2.9e13 a second at 1.7 GHz; an H200 moves 4.3e12 B/s, 10.06 B an element of
    bfloat16 with 8-bit state: 68 instructions per element, 98 on an H100 with 3.0e12 B/s. Float32 moves 28 B.
    """
    if variant.algorithm != "adam":
        return None
    return {torch.int8: 70.0, torch.bfloat16: 60.0, torch.float32: 60.0}[state] if param != torch.float16 else None


def state_dtypes(variant: Variant) -> tuple[torch.dtype, ...]:
    """Return the possible state dtypes of a variant: a variance as a difference of two means needs float32."""
    if variant.third or not (variant.first or variant.second):
        return (torch.float32,)
    return STATE_DTYPES


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compilations(arch: int) -> Iterator[Compilation]:
    """Yield every configuration that a step can launch. Raises ``ValueError`` for an unknown architecture.

    Evidence for the block sizes: Triton 3.6 compiles all 76 for sm_90 without spills, with 30 (counting steps) to 127
    registers (Adam, 8-bit state), 52 for Adam in float32: nine programs of 128 threads fit on a processor.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch is {arch}; allowed: {', '.join(map(str, ARCHITECTURES))}")
    for variant in VARIANTS:
        for param in PARAM_DTYPES:
            for state in state_dtypes(variant):
                label = f"{variant.label} {_name(param)} state {_name(state)}"
                one = _compilation("update", label, update_constants(variant, param, state), vector_bytes=16)
                yield replace(one, elements=ELEMENTS, most_instructions=most_instructions(variant, param, state))
    for param in PARAM_DTYPES:
        yield _compilation("norm", f"norm {_name(param)}", norm_constants(param), vector_bytes=16)
    for algorithm in ALGORITHMS:
        for clip in (False, True):
            label = f"advance {algorithm}{' clip' if clip else ''}"
            yield _compilation("advance", label, advance_constants(algorithm, clip), vector_bytes=None)


TYPES = {
    "pointers": "*i64", "chunks": "*i32", "scalars": "*fp32", "keys": "*i32", "settings": "*fp64", "partials": "*fp32",
    "norm": "*fp32", "n": "i32", "count": "i32", "done": "i32", "stochastic": "i32",
    "seed_low": "i32", "seed_high": "i32", "limit": "fp32",
}  # fmt: skip


def _compilation(kernel: str, label: str, constants: dict[str, object], vector_bytes: int | None) -> Compilation:
    function = {
        "update": kernels.update_kernel, "norm": preparation.norm_kernel, "advance": preparation.advance_kernel,
    }[kernel]  # fmt: skip
    names = function.arg_names
    return Compilation(
        kernel=f"optimizer_{kernel}",
        label=label,
        function=function,
        signature={name: "constexpr" if name in constants else TYPES[name] for name in names},
        constants=constants,
        num_warps=kernels.NUM_WARPS,
        num_stages=1,
        work=int(str(constants["BLOCK"])),
        aligned=tuple(name for name in names if name in TABLE_NAMES),
        vector_bytes=vector_bytes,
    )
