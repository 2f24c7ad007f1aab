"""Rounding in kernels, under the interpreter: to nearest even as PyTorch and a device round."""

from __future__ import annotations

import check_case
import pytest
import torch
import triton
import triton.language as tl
from scalekernels.rounding import rounded


@triton.jit
def convert(source, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, rounded(tl.load(source + at), out.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    source = bits.view(torch.float32)
    source = torch.where(source.isnan(), torch.nan, source)
    halfway = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 3.4e38, 2.0**-140]
    source[:9] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, *halfway])
    out = torch.empty(4096, dtype=dtype)
    convert[(1,)](source, out, SIZE=4096)
    assert torch.equal(out.nan_to_num(7.0).signbit(), source.to(dtype).nan_to_num(7.0).signbit())
    torch.testing.assert_close(out, source.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("operation", "label"),
    [
        ("norm", "rms 37x33 bf16 residual"),
        pytest.param("norm", "layer 3x8193 bf16", marks=pytest.mark.slow),
        ("rotary", None),
        ("cross_entropy", None),
        ("optimizer", None),
    ],
)
def test_cases_in_bfloat16_pass_the_check_of_a_device(operation: str, label: str | None) -> None:
    module = check_case.load(f"scalekernels.{operation}")
    first = next(iter(check_case.cases(module, ["bfloat16"], larger=False)))
    checks = check_case.check_case(module, check_case.find(module, label) if label else first, "cpu")
    assert not {name: check["problem"] for name, check in checks.items() if check["problem"]}
    assert any("tensors" in check for check in checks.values())
