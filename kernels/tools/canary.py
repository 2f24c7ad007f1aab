"""A canary for the toolchain: a matrix product with its first operand in registers and an exact integer result.

Some releases of ptxas before 13.3 let an asynchronous wgmma read registers that have already been overwritten (NVIDIA,
CUDA 13.3 release notes; triton pull request 11781 has a similar test), so that the same PTX gives correct results with
one assembler and wrong ones with another. All values here are small integers: the result is exact in float32, and any
difference is a fault.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from scalekernels.compilation import Compilation
from scalekernels.device import require_device

TILES = ((64, 64, 64, 4), (128, 64, 64, 4), (128, 128, 64, 8), (64, 128, 32, 4))  # rows, columns, depth, warps
DEPTH = 512
NUM_STAGES = 3


@triton.jit
def shifted_product(A, B, C, DEPTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """C (M, N) = (A + 1) B for A (M, DEPTH), B (DEPTH, N); the sum A + 1 stays in registers."""
    rows, cols, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, DEPTH, K):
        a = tl.load(A + rows[:, None] * DEPTH + start + k[None, :])
        b = tl.load(B + (start + k)[:, None] * N + cols[None, :])
        total = tl.dot((a + 1.0).to(tl.float16), b, total, input_precision="ieee")
    tl.store(C + rows[:, None] * N + cols[None, :], total)


def wrong_entries(device: str, rows: int, columns: int, depth: int, num_warps: int, seed: int = 0) -> int:
    """Return the number of wrong entries of the product; 0 with a correct toolchain."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-4, 5, (rows, DEPTH), generator=generator).to(device, torch.float16)
    b = torch.randint(-4, 5, (DEPTH, columns), generator=generator).to(device, torch.float16)
    require_device(a=a, b=b)
    product = torch.full((rows, columns), torch.nan, device=device)
    shifted_product[(1,)](a, b, product, DEPTH, rows, columns, depth, num_warps=num_warps, num_stages=NUM_STAGES)
    exact = (a.double() + 1) @ b.double()  # below 20 * 512: far inside float32's integers
    return int((product.double() != exact).sum())


def compilation(rows: int, columns: int, depth: int, num_warps: int) -> Compilation:
    """Return the canary of a tile for ahead-of-time compilation."""
    types = {"A": "*fp16", "B": "*fp16", "C": "*fp32"}
    signature = types | dict.fromkeys(("DEPTH", "M", "N", "K"), "constexpr")
    constants = {"DEPTH": DEPTH, "M": rows, "N": columns, "K": depth}
    return Compilation(
        "shifted_product", f"{rows}x{columns}x{depth}", shifted_product, signature, constants,
        num_warps, NUM_STAGES, rows * columns, aligned=tuple(types), tensor_core=True,
    )  # fmt: skip
