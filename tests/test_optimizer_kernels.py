"""The fused optimizers where no kernel runs: what would be launched, compiled, paid and refused."""

from __future__ import annotations

import re
import types
from itertools import product
from math import prod
from typing import Any

import pytest
import torch
import triton
from scalekernels import optimizer as ours
from scalekernels.compilation import ARCHITECTURES, Compilation
from scalekernels.optimizer import kernels as optimizer_kernels
from scalekernels.optimizer import launch as optimizer_launch
from scalekernels.optimizer import preparation
from scalekernels.optimizer.cases import FLOPS, SIZES
from scalekernels.optimizer.launch import POINTER_NAMES, VARIANTS, state_dtypes
from scalekernels.optimizer.tables import TABLES, Tables, chunk_table
from scalekernels.providers import Unsupported
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

COMPILED = list(ours.compilations(90))
KERNELS = {"update_kernel": optimizer_kernels, "norm_kernel": preparation, "advance_kernel": preparation}


class Recorder:
    """Stands where a kernel stands and writes down its launches."""

    def __init__(self, name: str, launches: list[dict[str, Any]]) -> None:
        self.function, self.launches = getattr(KERNELS[name], name), launches

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*given: Any, **constants: Any) -> None:
            named = dict(zip(self.function.arg_names, given, strict=False))
            self.launches.append({"function": self.function, "grid": grid, "given": named, "constants": constants})

        return launch


@pytest.fixture
def launches(monkeypatch) -> list[dict[str, Any]]:
    """Every launch, in order, instead of being launched."""
    recorded: list[dict[str, Any]] = []
    stand_ins = {module: types.SimpleNamespace(**vars(module)) for module in KERNELS.values()}
    for name, module in KERNELS.items():
        setattr(stand_ins[module], name, Recorder(name, recorded))
    monkeypatch.setattr(optimizer_launch, "kernels", stand_ins[optimizer_kernels])
    monkeypatch.setattr(optimizer_launch, "preparation", stand_ins[preparation])
    return recorded


def take_step(variant, shapes, dtypes, state_dtype, clip, lr=1.0, tables_id=0) -> None:
    """Call the custom operation with empty state of a variant."""
    params = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    second_dtype = torch.uint8 if state_dtype == torch.int8 else state_dtype
    states = [
        [torch.zeros_like(param, dtype=dtype) for param in params] if used else []
        for used, dtype in (
            (variant.first, state_dtype),
            (variant.second, second_dtype),
            (variant.third, torch.float32),
        )
    ]
    coded = state_dtype == torch.int8
    scales = [
        [torch.zeros(-(-param.numel() // 256)) for param in params] if coded and used else [] for used in states[:2]
    ]
    options = torch.full((1, optimizer_kernels.OPTIONS), lr, dtype=torch.float64)
    steps = [torch.zeros(()) for _ in params]
    grads = [torch.zeros_like(param) for param in params]
    ours.optimizer_step(
        tables_id, variant.algorithm, params, grads, steps, *states, *scales, [0] * len(params), options,
        torch.zeros(()), clip, True, 0,
    )  # fmt: skip


def typed(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        names = POINTER_NAMES | {torch.int64: "*i64", torch.int32: "*i32", torch.float64: "*fp64"}
        return names[value.dtype]
    return {int: "i32", float: "fp32"}[type(value)]


def compiled_as(launch: dict[str, Any]) -> Compilation:
    """Return the configuration that was compiled ahead of time for a launch."""
    constants = dict(launch["constants"])
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    (match,) = (
        compilation
        for compilation in COMPILED
        if compilation.function is launch["function"] and dict(compilation.constants) == constants
    )
    assert (match.num_warps, match.num_stages) == (warps, stages)
    for name, value in launch["given"].items():
        assert match.signature[name] == typed(value)
        assert not isinstance(value, torch.Tensor) or name in match.aligned
    return match


def test_everything_that_is_launched_is_compiled_and_nothing_else(launches):
    for variant in VARIANTS:
        for state_dtype, dtype, clip in product(state_dtypes(variant), optimizer_launch.PARAM_DTYPES, (None, 1.0)):
            take_step(variant, [(5,)], [dtype], state_dtype, clip)
    assert {compiled_as(launch).label for launch in launches} == {compilation.label for compilation in COMPILED}


def test_the_same_configurations_for_every_architecture():
    assert len({compilation.label for compilation in COMPILED}) == len(COMPILED) <= 80
    for arch in ARCHITECTURES:
        assert [each.label for each in ours.compilations(arch)] == [each.label for each in COMPILED]
    with pytest.raises(ValueError, match="arch is 75; allowed: 80, 90, 100"):
        next(ours.compilations(75))


def test_nothing_that_changes_between_steps_decides_machine_code(launches):
    """Integers are not specialised on 1 or on divisibility by 16, floats never are, and pointers are always aligned."""
    for compilation in COMPILED:
        for parameter in compilation.function.params:
            name = compilation.signature[parameter.name]
            assert parameter.do_not_specialize == (name in ("i32", "i64")) or name in ("constexpr", "fp32")
            assert not name.startswith("*") or parameter.name in compilation.aligned
    for lr, clip in product((1.0, 0.5, 16.0), (1.0, 0.25, 1e9)):
        take_step(VARIANTS[0], [(5,)], [torch.float32], torch.float32, clip, lr)
    assert len({(compiled_as(launch).label) for launch in launches}) == 3
    types_of = {(launch["function"], tuple(map(typed, launch["given"].values()))) for launch in launches}
    assert len(types_of) == 3


def test_one_launch_per_dtype(launches):
    dtypes = [torch.float32, torch.bfloat16, torch.float16] * 50
    take_step(VARIANTS[0], [(300,), (0,), (9000,)] * 50, dtypes, torch.float32, 1.0)
    names = [launch["function"].__name__ for launch in launches]
    assert names == ["norm_kernel"] * 2 + ["advance_kernel"] + ["update_kernel"] * 2  # bfloat16 has no elements here
    assert [launch["grid"] for launch in launches] == [(50,), (100,), (2,), (50,), (100,)]
    assert [launch["given"]["done"] for launch in launches[:2]] == [0, 50]


def test_chunks_cover_every_element_once():
    lengths = [0, 1, optimizer_kernels.CHUNK, optimizer_kernels.CHUNK + 1, 3 * optimizer_kernels.CHUNK]
    table = chunk_table(lengths, [0, 2, 3, 4]).tolist()
    assert table == [[2, 0], [3, 0], [3, 1], [4, 0], [4, 1], [4, 2]]


def test_a_gpt_of_124_million_fills_the_processors_many_times():
    lengths = [prod(shape) for shape in SIZES["124M"]]
    assert len(lengths) == 148
    assert sum(lengths) == 124_439_808
    programs = len(chunk_table(lengths, range(len(lengths))))
    resident = 132 * 2048 // (32 * optimizer_kernels.NUM_WARPS)
    assert programs > 7 * resident


def test_tables_notice_other_tensors_under_the_same_number(launches):
    tables = TABLES[-1] = Tables()
    for shapes, rebuilt in (([(5,), (6,)], 1), ([(5,), (6,)], 1), ([(5,), (7,)], 2), ([(5,)], 3)):
        take_step(VARIANTS[1], shapes, [torch.float32] * len(shapes), torch.float32, None, tables_id=-1)
        assert tables.uploads["chunks"] == rebuilt
        assert tables.pointers.shape == (optimizer_kernels.ROWS, len(shapes))


@pytest.mark.parametrize(
    ("name", "dtype", "state_dtype", "bytes_per_element"),
    [
        ("124M", torch.float32, torch.float32, 28),
        ("350M", torch.float32, torch.bfloat16, 20),
        ("760M", torch.bfloat16, torch.bfloat16, 14),
        ("1.3B", torch.bfloat16, torch.int8, 10 + 16 / 256),
    ],
)
def test_cost_counts_every_byte_once_each_way(name, dtype, state_dtype, bytes_per_element):
    case = ours.Case(name, SIZES[name], "adamw", dtype, state_dtype)
    cost = ours.cost(case)
    assert cost.bytes_moved == pytest.approx(bytes_per_element * case.params, rel=1e-3)
    assert cost.bytes_read - cost.bytes_written == case.params * dtype.itemsize
    assert cost.flops == FLOPS["adamw"] * case.params
    clipped = ours.cost(ours.Case(name, SIZES[name], "adamw", dtype, state_dtype, max_grad_norm=1.0))
    assert clipped.bytes_moved - cost.bytes_moved == case.params * dtype.itemsize


def test_cases_have_labels_of_their_own():
    labels = [case.label for case in (*ours.CASES, *ours.LADDER)]
    assert len(set(labels)) == len(labels)
    assert ours.LADDER[0].label == "adamw 124M 148t f32/f32"
    sizes = [sum(map(prod, shapes)) for shapes in SIZES.values()]
    assert sizes == pytest.approx([124e6, 355e6, 758e6, 1.31e9], rel=0.01)


def test_providers_say_why_they_cannot():
    case = ours.CASES[0]
    tensors = ours.inputs(case)
    providers = ours.providers()
    for provider in providers.values():
        with pytest.raises(Unsupported, match="no backward pass"):
            provider.prepare(case, tensors, True)
    lion = ours.Case("one", ((3,),), "lion")
    with pytest.raises(Unsupported, match=r"torch\.optim has no lion"):
        providers["foreach"].prepare(lion, ours.inputs(lion), False)
    low = ours.Case("one", ((3,),), "adamw", state_dtype=torch.int8)
    with pytest.raises(Unsupported, match="no CUDA device"):
        providers["triton"].prepare(low, ours.inputs(low), False)


@pytest.mark.parametrize("name", ["eager", "foreach", "fused"])
def test_torchs_providers_give_the_exact_result(name):
    for case in ours.CASES:
        tensors = ours.inputs(case)
        try:
            outputs = ours.providers()[name].prepare(case, tensors, False)()
        except Unsupported:
            assert name != "eager"
            continue
        for key, exact in ours.results(case, tensors, False).items():
            tolerance = 4 * torch.finfo(case.dtype).eps
            torch.testing.assert_close(outputs[key].double(), exact, rtol=tolerance, atol=tolerance)


def test_a_parameter_out_of_reach_is_refused_before_any_launch():
    with pytest.raises(ValueError, match="parameter 0 of group 0 is on cpu; the fused kernels take CUDA tensors"):
        ours.AdamW([torch.nn.Parameter(torch.zeros(3))])


def test_reference_refuses_an_unknown_algorithm():
    with pytest.raises(ValueError, match="algorithm is 'adamax'; known: adam, adamw, sgd"):
        ours.reference("adamax", torch.zeros(1), torch.zeros(1), {})


@pytest.mark.slow
@pytest.mark.parametrize("label", ["adam float32 state float32", "adam bfloat16 state bfloat16", "norm float32"])
def test_aligned_chunks_take_loads_of_sixteen_bytes(label):
    (each,) = (compilation for compilation in COMPILED if compilation.label == label)
    names = each.function.arg_names
    source = ASTSource(
        fn=each.function,
        signature=dict(each.signature),
        constexprs={(names.index(name),): value for name, value in each.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in each.aligned},
    )
    options = {"num_warps": each.num_warps, "num_stages": each.num_stages}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    wide = len(re.findall(r"ld\.global\.v4\.b32", ptx))
    assert wide >= 4 * (2 if "float32" in label else 1)  # of four tensors; the norm reads one, in larger blocks
