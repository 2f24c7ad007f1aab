"""What is read off compiled kernels, and that the checker can fail: kernels made to break each requirement.

What the very same compiler and reader made of the very same kernel before is taken from the cache of ``make kernels``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import compile_ahead
import machine_code
import pytest
import triton
import triton.language as tl
from scalekernels.compilation import ARCHITECTURES, Compilation
from scalekernels.device import assembler


@triton.jit
def products(A, B, C, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr = "tf32"):
    """C = A B^T over K, the sum kept in the accumulator: wgmma runs while the next tile is fetched."""
    rows, cols, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, K, BK):
        a = tl.load(A + rows[:, None] * 4096 + start + k[None, :])
        b = tl.load(B + cols[:, None] * 4096 + start + k[None, :])
        total = tl.dot(a, b.T, total, input_precision=PRECISION)
    tl.store(C + rows[:, None] * N + cols[None, :], total.to(tl.float16))


@triton.jit
def serialised(A, B, C, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """The largest entry of any product of tiles: every product is waited for before the next."""
    rows, cols, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    peak = tl.full([M, N], float("-inf"), tl.float32)
    for start in range(0, K, BK):
        a = tl.load(A + rows[:, None] * 4096 + start + k[None, :])
        b = tl.load(B + cols[:, None] * 4096 + start + k[None, :])
        peak = tl.maximum(peak, tl.dot(a, b.T, input_precision=PRECISION))
    tl.store(C + rows[:, None] * N + cols[None, :], peak.to(tl.float16))


@triton.jit
def divided(A, B, C, K, PERIOD, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr):
    """C = A B^T over K, with every period's A: an integer division in the loop of the products."""
    rows, cols, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, K, BK):
        a = tl.load(A + rows[:, None] * 4096 + start // PERIOD * 16 + k[None, :])
        b = tl.load(B + cols[:, None] * 4096 + start + k[None, :])
        total = tl.dot(a, b.T, total)
    tl.store(C + rows[:, None] * N + cols[None, :], total.to(tl.float16))


@triton.jit
def scaled(A, C, K, BK: tl.constexpr):
    """C = 2 A, a tile of BK values per program."""
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    tl.store(C + k, tl.load(A + k, mask=k < K) * 2, mask=k < K)


SIGNATURE = {
    "A": "*fp16", "B": "*fp16", "C": "*fp16", "K": "i32", "M": "constexpr", "N": "constexpr", "BK": "constexpr",
    "PRECISION": "constexpr",
}  # fmt: skip


def tile(function: object, m: int, n: int, bk: int, num_warps: int = 8, **changes: object) -> Compilation:
    """A product of tiles as a kernel module would ship it."""
    plain = Compilation(
        "products", f"{m}x{n}x{bk}", function, SIGNATURE, {"M": m, "N": n, "BK": bk, "PRECISION": "ieee"},
        num_warps, 3, m * n, aligned=("A", "B", "C", "K"), tensor_core=True, vector_bytes=16,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def specialized(compilation: Compilation) -> Compilation:
    """A kernel required to have lean loops, as those with producer warps are."""
    return dataclasses.replace(compilation, specialized=True)


def figures(compilation: Compilation, arch: int) -> machine_code.MachineCode:
    """What is read off a kernel."""
    return compile_ahead.figures(compilation, arch, compile_ahead.CACHE)


def found(compilation: Compilation, arch: int) -> list[str]:
    """What the checker has against a kernel."""
    return machine_code.failures(compilation, arch, figures(compilation, arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_sound_kernel_passes_on_every_architecture(arch: int) -> None:
    compilation = tile(products, 128, 128, 64)
    code = figures(compilation, arch)
    assert machine_code.failures(compilation, arch, code) == []
    assert any(name.startswith(machine_code.MATRIX_INSTRUCTION[arch]) for name in code.matrix)
    assert code.registers > 32
    assert code.shared_bytes >= 2 * (128 + 128) * 64 * 2
    if arch == 90:
        assert code.matrix == {"wgmma SS": 4}  # 128 rows are two warp groups of 64; 64 deep is four steps of 16
        assert (code.products, code.drained) == (1, 0)
        assert (code.divisions, code.addresses) == (
            None,
            None,
        )  # not requested: no zeros to be taken for requested ones
        missed = machine_code.failures(specialized(compilation), arch, code)
        assert missed == ["no loop with products in the disassembled machine code"]


@pytest.mark.slow
def test_a_tile_that_hungers_for_registers_is_flagged() -> None:
    hungry = tile(products, 256, 256, 32, num_warps=4)
    problems = "; ".join(found(hungry, 90))
    assert "spills: " in problems
    assert "serialized due to insufficient register resources" in problems
    excused = dataclasses.replace(hungry, spills_allowed="this test wants them")
    assert "spills" not in "; ".join(found(excused, 90))


def test_products_that_wait_for_each_other_are_flagged() -> None:
    assert [problem.partition(":")[0] for problem in found(tile(serialised, 128, 128, 64), 90)] == ["serialised"]


@pytest.mark.slow
def test_divisions_and_64_bit_addresses_in_loops_with_products_are_flagged() -> None:
    """The warps that multiply load their own tiles here, by 64-bit addresses."""
    plain = tile(products, 64, 64, 64, num_warps=4)
    assert [problem.partition(":")[0] for problem in found(specialized(plain), 90)] == ["addresses"]
    signature = {name: "i32" if name == "PERIOD" else SIGNATURE.get(name) for name in divided.arg_names}
    periods = tile(divided, 64, 64, 64, num_warps=4, signature=signature, constants={"M": 64, "N": 64, "BK": 64})
    assert [problem.partition(":")[0] for problem in found(specialized(periods), 90)] == ["divisions", "addresses"]


@pytest.mark.slow
def test_a_product_without_the_architectures_instruction_is_flagged() -> None:
    two_warps = tile(products, 64, 64, 64, num_warps=2)  # wgmma takes groups of four warps
    assert found(two_warps, 90)[0].startswith("no wgmma instruction (found {'mma.sync'")
    exact = SIGNATURE | {"A": "*fp32", "B": "*fp32"}
    for arch in ARCHITECTURES:  # float32 without rounding to tf32 has no matrix instruction on any of them
        problems = "; ".join(found(tile(products, 64, 64, 32, num_warps=4, signature=exact), arch))
        assert "matrix products without tensor cores" in problems
        assert f"no {machine_code.MATRIX_INSTRUCTION[arch]} instruction" in problems


@pytest.mark.slow
def test_too_much_shared_or_tensor_memory_is_flagged() -> None:
    deep = tile(products, 128, 128, 256, num_stages=4)
    assert [problem.partition(":")[0] for problem in found(deep, 80)] == ["shared memory"]
    wide = tile(products, 256, 512, 64)  # the compiler gives up and returns an empty kernel
    problems = [problem.partition(":")[0] for problem in found(wide, 100)]
    assert {"tensor memory", "writes nothing to global memory"} <= set(problems)


def test_a_load_that_is_not_known_to_be_aligned_is_flagged() -> None:
    signature = {"A": "*fp16", "C": "*fp16", "K": "i32", "BK": "constexpr"}
    aligned = Compilation("scaled", "1024", scaled, signature, {"BK": 1024}, 4, 1, 1, ("A", "C", "K"), vector_bytes=16)
    assert found(aligned, 90) == []
    views = dataclasses.replace(aligned, aligned=("C", "K"))
    assert found(views, 90) == ["loads: 2 bytes at most, 16 required"]


def test_the_assembler_that_is_named_is_the_one_that_is_used_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "ptxas"
    other.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.1, V99.1.7'\n")
    other.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(other))
    assembler.cache_clear()
    assert assembler(90) == (str(other), "99.1.7")
    assembler.cache_clear()


def test_a_signature_that_is_not_the_functions_is_refused() -> None:
    with pytest.raises(ValueError, match="is not the function's"):
        machine_code.source_of(tile(products, 64, 64, 64, signature={"A": "*fp16"}))


def test_a_source_hash_follows_the_code_and_the_configuration_and_nothing_else() -> None:
    first = tile(products, 64, 64, 64)
    same = machine_code.source_sha256(first)
    assert machine_code.source_sha256(tile(products, 64, 64, 64, work=7, label="renamed")) == same
    others = [tile(products, 64, 64, 32), tile(serialised, 64, 64, 64), tile(products, 64, 64, 64, num_warps=4)]
    others += [tile(products, 64, 64, 64, aligned=("A",)), tile(products, 64, 64, 64, options={"maxnreg": 128})]
    assert same not in {machine_code.source_sha256(other) for other in others}


@pytest.mark.slow
def test_the_cache_never_serves_another_kernels_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compilation = tile(products, 64, 64, 64, num_warps=4)
    code = compile_ahead.figures(compilation, 90, tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.write_text(stored.read_text().replace(f'"registers": {code.registers}', '"registers": 1'))
    assert compile_ahead.figures(compilation, 90, tmp_path).registers == 1  # the very same thing: from the cache
    for other in (tile(products, 64, 64, 32, num_warps=4), tile(serialised, 64, 64, 64, num_warps=4)):
        assert compile_ahead.figures(other, 90, tmp_path).registers > 1
    assert compile_ahead.figures(specialized(compilation), 90, tmp_path).addresses  # another request of the same code
    monkeypatch.setattr(machine_code, "ptxas_version", lambda arch: "99.9")
    assert compile_ahead.figures(compilation, 90, tmp_path).registers == code.registers
