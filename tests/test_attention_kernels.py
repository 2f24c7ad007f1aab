"""Attention without the interpreter: refusals by name, costs, the other providers, and the shipped configurations."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import compile_ahead
import pytest
import torch
from kernel_support import inaccuracy
from scalekernels.attention import (
    CASES,
    DTYPES,
    LADDER,
    Case,
    attention,
    attention_over_cache,
    compilations,
    cost,
    hopper_gradients,
    inputs,
    kernels,
    launch,
    providers,
    results,
    tiles,
)
from scalekernels.compilation import ARCHITECTURES
from scalekernels.providers import Unsupported
from torch._subclasses import FakeTensorMode

SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
PROVIDERS = providers()
SMALL = Case(1, 4, 2, 9, 7, 16, False, torch.float32)


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    q, k = torch.zeros(2, 4, 5, 16), torch.zeros(2, 2, 7, 16)
    return {"q": q, "k": k, "v": k} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(2, 4, 5, 16).double()}, TypeError, "q is float64; allowed: float16, bfloat16, float32"),
        ({"v": torch.zeros(2, 2, 7, 16).half()}, TypeError, "v is torch.float16 and q is torch.float32"),
        ({"q": torch.zeros(4, 5, 16)}, ValueError, r"q has shape \(4, 5, 16\); allowed: \(batch, heads"),
        ({"k": torch.zeros(2, 2, 0, 16)}, ValueError, "k has shape"),
        ({"q": torch.zeros(2, 4, 5, 32)[..., ::2]}, ValueError, r"q has stride 2 in its last .*q.contiguous\(\)"),
        ({"q": torch.zeros(2, 4, 5, 48)}, ValueError, "k has shape .* must be those of q"),
        ({"q": torch.zeros(2, 4, 5, 288)}, Unsupported, "head dimension 288; the kernels have at most 256"),
        ({"k": torch.zeros(1, 2, 7, 16)}, ValueError, "k has shape .* must be those of q"),
        ({"v": torch.zeros(2, 2, 8, 16)}, ValueError, "v has shape .* must be that of k"),
        ({"q": torch.zeros(2, 5, 5, 16)}, ValueError, "q has 5 heads and k 2; .* multiple"),
    ],
)
def test_wrong_tensors_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        attention(**tensors(**changes))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_scales_are_refused(scale):
    with pytest.raises(ValueError, match="allowed: a finite number above 0"):
        attention(**tensors(), scale=scale)


def test_a_cpu_is_refused_before_any_launch():
    with pytest.raises(ValueError, match="q is on cpu; the fused kernels take CUDA tensors"):
        attention(**tensors())


@pytest.mark.slow
def test_the_package_without_triton_refuses_with_the_reason():
    """The reference and the other providers work where triton is missing, and ours says that it is."""
    code = (
        "import sys, importlib.util as u; sys.modules['triton'] = None\n"
        "found = u.find_spec; u.find_spec = lambda name, *rest: None if name == 'triton' else found(name, *rest)\n"
        "from scalekernels import attention as a\n"
        "case = a.CASES[0]; given = a.inputs(case)\n"
        "assert a.providers()['eager'].prepare(case, given, False)()['out'].shape == given['q'].shape\n"
        "try: a.providers()['triton'].prepare(case, given, False)\n"
        "except a.Unsupported as reason: print(reason)\n"
    )
    path = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert run.stdout == "triton is not installed\n", run.stderr


def test_cost_follows_the_stated_convention():
    case = Case(2, 8, 2, 100, 60, 64, False, torch.bfloat16)
    forward, backward = cost(case, backward=False), cost(case, backward=True)
    assert forward.flops == 4 * 2 * 8 * 100 * 60 * 64
    assert backward.flops == 2.5 * forward.flops
    assert cost(Case(2, 8, 2, 100, 60, 64, True, torch.bfloat16), False).flops == forward.flops / 2
    rows, keys, lse = 2 * 8 * 100 * 64 * 2, 2 * 2 * 60 * 64 * 2, 2 * 8 * 100 * 4
    assert (forward.bytes_read, forward.bytes_written) == (rows + 2 * keys, rows + lse)
    assert (backward.bytes_read, backward.bytes_written) == (3 * rows + 2 * keys + lse, rows + 2 * keys)


def test_labels_are_unique_and_the_ladder_keeps_its_tokens():
    for cases in (CASES, LADDER):
        assert len({case.label for case in cases}) == len(cases)
    assert Case(1, 8, 2, 512, 512, 64, True, torch.bfloat16).label == "B1 H8/2 T512 D64 bf16 causal"
    assert {case.batch * case.query_length for case in LADDER if case.query_heads == case.key_heads} == {16384}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", [*CASES[:4], SMALL], ids=lambda case: case.label)
@pytest.mark.parametrize("name", ["sdpa-math", "sdpa-flash"])
def test_torch_providers_agree_with_the_oracle_or_say_why_not(name, case, backward):
    tensors = inputs(case)
    theirs = PROVIDERS["eager"].prepare(case, tensors, backward)()
    outputs = PROVIDERS[name].prepare(case, tensors, backward)()
    assert inaccuracy(outputs, theirs, results(case, tensors, backward), ulps=32) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sdpa-efficient", "No (available kernel|viable backend)"),
        ("sdpa-cudnn", "No (available kernel|viable backend)"),
        ("triton", "no CUDA device"),
        ("triton-pointers", "no CUDA device"),
        ("triton-atomic", "no CUDA device"),
        ("triton-descriptors", "no CUDA device"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no CUDA device")
def test_providers_that_need_a_gpu_say_so(name, reason):
    with pytest.raises(Unsupported, match=reason):
        PROVIDERS[name].prepare(SMALL, inputs(SMALL), False)


def test_every_configuration_is_described_once_and_completely():
    for arch in ARCHITECTURES:
        labels = set()
        for configuration in compilations(arch):
            assert configuration.label not in labels
            labels.add(configuration.label)
            assert tuple(configuration.signature) == tuple(configuration.function.arg_names)
            constants = {name for name, kind in configuration.signature.items() if kind == "constexpr"}
            assert constants == set(configuration.constants)
            assert set(configuration.aligned) <= set(configuration.signature) - constants


def test_rows_cover_every_launch_and_keep_small_heads_to_two_warps():
    """Head dimensions 16 and 32 fault on Hopper with four warps and more under Triton 3.6 and 3.7."""
    for arch in ARCHITECTURES:
        configurations = {row[1:] for row, _ in tiles.rows(arch)}
        widths = {torch.finfo(dtype).bits for dtype in DTYPES}
        assert configurations == {
            (bits, size, bucket) for bits in widths for size in tiles.HEAD_DIMENSIONS for bucket in ("short", "long")
        }
        for row, chosen in tiles.rows(arch):
            for kind in ("forward", "queries"):
                assert chosen.get(f"{kind}-descriptors", chosen[kind]) == chosen[kind]
                serves = arch >= 90 and row.bits == 16 and row.head_dimension >= 64
                assert (f"{kind}-descriptors" in chosen) == serves
            for tile in chosen.values():
                assert row.head_dimension > 32 or tile.warps <= 2
                assert tiles.padded(1) % tile.block_m == 0


def compiled(configuration, arch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile  # noqa: A004 - triton's own name

    names = list(configuration.signature)
    source = ASTSource(
        fn=configuration.function,
        signature=dict(configuration.signature),
        constexprs={(names.index(name),): value for name, value in configuration.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in configuration.aligned},
    )
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    return compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@pytest.mark.parametrize("kind", ["forward", "forward-descriptors", "keys", "atomic", "queries", "queries-descriptors"])
def test_long_bfloat16_sequences_on_hopper_use_asynchronous_tensor_cores(kind):
    """wgmma, 16-byte copies and shared memory within the limit; the rest of the table is for ``make kernels``."""
    configuration = long_bfloat16(kind, 90)
    result = compiled(configuration, 90)
    assert configuration.tensor_core
    assert "wgmma.mma_async" in result.asm["ptx"]
    assert "mma.sync" not in result.asm["ptx"]
    assert ("cp.async.cg" in result.asm["ptx"]) != kind.endswith("-descriptors")
    assert ("cp.async.bulk.tensor.4d" in result.asm["ptx"]) == kind.endswith("-descriptors")
    assert result.metadata.shared <= SHARED_BYTES[90]


@pytest.mark.slow
def test_descriptors_take_fewer_registers_than_pointers_on_the_same_tile():
    """What ``tiles.py`` says of the two, of whichever compiler is here."""
    for arch in (90, 100):
        by_pointers, by_descriptors = (
            compile_ahead.figures(long_bfloat16(kind, arch), arch, compile_ahead.CACHE)
            for kind in ("forward", "forward-descriptors")
        )
        assert by_descriptors.registers < by_pointers.registers
        assert by_descriptors.matrix == by_pointers.matrix
        assert (by_descriptors.products, by_descriptors.drained) == (by_pointers.products, by_pointers.drained)


def long_bfloat16(kind, arch):
    tile = tiles.tile_for(kind, tiles.Row(arch, 16, 128, "long"))
    shape = f"{tile.block_m}x{tile.block_n} {tile.warps} warps"
    (configuration,) = [
        configuration
        for configuration in compilations(arch)
        if configuration.label.startswith(f"attention {kind} bf16 D128 causal {shape}")
    ]
    return configuration


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by forward_ad itself
def test_forward_mode_is_an_error_by_name():
    q = torch.randn(1, 1, 8, 16)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(RuntimeError, match=r"attention has no forward-mode derivative .k has a tangent"):
            attention(q, dual, q)
        with torch.no_grad(), pytest.raises(RuntimeError, match="attention_over_cache has no forward-mode derivative"):
            attention_over_cache(q[:, :, :2], dual, q)


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Of the kernels in Triton, of those in Gluon, and of what runs before and after the latter."""
    current, launched = [0], []

    @contextlib.contextmanager
    def on(device):
        current.append(device.index)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda **_: launched.append((grid, current[-1]))

    monkeypatch.setattr(torch.cuda, "device", on)
    for name in ("attention_statistics", "attention_scale_queries"):
        monkeypatch.setattr(kernels, name, Kernel())
    with FakeTensorMode():  # tensors on a device that is not there
        q = torch.empty(1, 2, 200, 64, device="cuda:1", dtype=torch.float16)
        lse = torch.empty(1, 2, 200, device="cuda:1")
        launch._launch(Kernel(), 3, tiles.Tile(64, 64, 4, 2), {"length": 5, "q": q}, {})
        hopper_gradients.launch(Kernel(), 4, {"q_desc": SimpleNamespace(base=q)})
        hopper_gradients.row_statistics(q, q, lse)
        hopper_gradients.scale_queries(torch.empty(1, 2, 256, 64, device="cuda:1"), q, 0.5)
    assert [device for _, device in launched] == [1, 1, 1, 1]
    assert [grid for grid, _ in launched[:2]] == [(3,), (4,)]
