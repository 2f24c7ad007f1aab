"""What a comparison can be asked for: options, operations, cases and shapes; and how its cases make lines."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pandas as pd
import pytest
import scalekernels
import torch

import scalebench
from scalebench.comparison import Options, cost_columns, plan_comparison
from scalebench.comparison.operations import (
    choose_cases,
    decode,
    encode,
    load_operation,
    parse_case,
    spell,
)
from scalebench.comparison.options import OPERATION_MODULES
from scalebench.errors import InputError
from scalebench.reporting.sections.comparison_figures import BYTES, FLOPS, part_of
from scalebench.store import write_json
from scalebench.store.comparisons import new_run, read_comparisons, write_run

OPERATION = str(Path(__file__).with_name("comparison_operation.py"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"providers": "eagre"}, "did you mean 'eager'?"),
        ({"baseline": "triton"}, "--baseline: unknown 'triton'"),
        ({"shapes": "casse"}, "did you mean 'cases'?"),
        ({"shapes": "row=1,columns=2"}, "unknown 'row'; did you mean 'rows'?"),
        ({"shapes": "rows=two,columns=2"}, "rows: 'two' is not a whole number"),
        ({"shapes": "rows=2"}, "missing columns; for example rows=7,columns=33,dtype=float32"),
        ({"shapes": "rows=2,columns=2,dtype=float23"}, "did you mean 'float32'?"),
        ({"shapes": "rows=2,columns=2,power=sqare"}, "did you mean 'square'?"),
        ({"shapes": "rows=0,columns=2"}, "rows is 0; at least 1"),
        ({"dtype": "half"}, "--dtype: unknown 'half'"),
        ({"device": "tpu"}, "--device: unknown 'tpu'"),
        ({"seconds": 0}, "--seconds 0: must be greater than 0"),
        ({"provider": "eager"}, "did you mean 'providers'?"),
    ],
)
def test_wrong_options_are_refused_with_what_was_meant(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        scalebench.compare(OPERATION, results=tmp_path, **{"device": "cpu"} | options)
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_an_operation_that_is_not_known_or_not_complete_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("CASES = ()\n")
    for name, message in (("atention", "did you mean 'attention'?"), (str(empty), "lacks Case, inputs"),
                       (str(tmp_path / "none.py"), "no such file")):  # fmt: skip
        with pytest.raises(InputError, match=message.replace("?", r"\?")):
            plan_comparison(name, Options())


def test_an_operation_without_an_eager_provider_is_refused_as_nothing_could_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "sines.py"
    text = Path(OPERATION).read_text(encoding="utf-8")
    path.write_text(f"{text}\n\nall_providers = providers\nproviders = lambda: {{'mine': all_providers()['eager']}}\n")
    with pytest.raises(InputError, match=r"no provider 'eager' .*; providers: mine"):
        plan_comparison(str(path), Options(baseline="mine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("import torch\n", "import torchh\n"), r"own\.py:LINE: ModuleNotFoundError: No module named 'torchh'"),
        (("from typing import", "from typing imprt"), r"own\.py:LINE: SyntaxError"),
        (("@dataclass(frozen=True)", "@dataclass"), "Case must be a frozen dataclass"),
        (("def label", "def name"), "Case has no label"),
        (("CASES = (Case", "CASES = () and (Case"), "CASES is empty"),
        (("return Cost(2 *", "return (2 *"), r"own: cost returns a scalekernels\.cost\.Cost, not tuple"),
        (("case.dtype.itemsize", "case.itemsize"), r"own\.py:LINE: AttributeError: 'Case' object has no attribute"),
        (("def providers()", "def providers(): pass\ndef others()"), "own.py: providers returns nothing"),
    ],
)
def test_a_mistake_in_a_users_operation_is_one_line_with_its_place(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    text = Path(OPERATION).read_text(encoding="utf-8")
    line = text[: text.index(change[0])].count("\n") + 1
    (tmp_path / "own.py").write_text(text.replace(*change, 1))
    with pytest.raises(InputError, match=message.replace("LINE", str(line))) as refused:
        plan_comparison(str(tmp_path / "own.py"), Options(device="cpu"))
    assert len(refused.value.lines) == 1


def test_an_operation_without_a_backward_says_so() -> None:
    with pytest.raises(InputError, match="no backward pass"):
        plan_comparison("optimizer", Options(backward=True, device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no usable CUDA device"):
        plan_comparison(OPERATION, Options(device="cuda"))


@pytest.mark.parametrize("name", OPERATION_MODULES)
def test_every_case_of_every_operation_survives_being_written_and_typed(name: str) -> None:
    operation = load_operation(name)
    for case in (*operation.module.CASES, *operation.cases["ladder"]):
        written = json.loads(json.dumps(encode(case)))
        assert decode(operation, written) == case
        assert parse_case(operation, ",".join(f"{field}={spell(value)}" for field, value in written.items())) == case
        assert case.label


@pytest.mark.parametrize("name", scalekernels.OPERATIONS)
def test_every_operation_has_the_parts_of_a_kernel_folder(name: str) -> None:
    module = importlib.import_module(f"scalekernels.{name}")
    parts = ("reference", "cost", "providers", "Case", "CASES", "LADDER", "LARGER", "GOALS", "inputs", "results")
    assert [part for part in (*parts, "compilations") if not hasattr(module, part)] == []
    assert "eager" in module.providers()
    assert any(provider.startswith("triton") for provider in module.providers())
    assert len(module.__doc__.splitlines()) > 5


def test_help_and_errors_name_every_operation(command) -> None:
    assert tuple(OPERATION_MODULES.values()) == tuple(f"scalekernels.{name}" for name in scalekernels.OPERATIONS)
    code, help_text, _ = command("compare", "--help")
    assert code == 0
    for arguments in (("compare",), ("compare", "attentoin")):
        code, _, error = command(*arguments)
        assert code == 2
        assert all(name in error for name in OPERATION_MODULES)
    assert all(name in help_text for name in OPERATION_MODULES)


def test_cases_are_chosen_by_list_by_shape_and_by_dtype() -> None:
    operation = load_operation(OPERATION)
    module = operation.module
    assert choose_cases(operation, [], [], "cpu") == list(module.CASES)
    assert choose_cases(operation, [], [], "cuda") == list(module.LADDER)
    own = choose_cases(operation, ["rows=2, columns=3, power=cube, scale=0.5, flip=true"], [], "cpu")
    assert own == [module.Case(2, 3, torch.float32, "cube", 0.5, True)]
    both = choose_cases(operation, ["cases", "cases"], ["float32", "float16"], "cpu")
    assert [case.dtype for case in both] == [torch.float32, torch.float16] * 2
    for case in (*own, *both, *module.CASES):
        assert decode(operation, json.loads(json.dumps(encode(case)))) == case


@pytest.mark.parametrize(
    ("name", "x", "variants"),
    [
        ("norm", "shape_width", {"shape_kind", "shape_residual", "dtype"}),
        ("cross-entropy", "shape_width", {"dtype"}),
        ("attention", "shape_query_length", {"shape_causal", "dtype", "shape_head_dimension", "shape_query_heads"}),
    ],
)
def test_lines_join_the_cases_of_a_ladder_that_differ_in_size_alone(name: str, x: str, variants: set[str]) -> None:
    operation = load_operation(name)
    rows = [
        {"case": case.label, "dtype": "bfloat16", "matmul_ceiling_flops_per_s": 8e14, "copy_ceiling_bytes_per_s": 4e12}
        | {f"shape_{field}": value for field, value in encode(case).items() if field != "dtype"}
        | dict(cost_columns(operation, case, False))
        for case in operation.module.LADDER
    ]
    part = part_of(pd.DataFrame(rows), ["eager"])
    assert part.x in (x, x.replace("query", "key"))
    assert set(part.variants) == variants
    assert part.rate == (FLOPS if name != "norm" else BYTES)


def test_cases_without_an_order_are_shown_by_their_work() -> None:
    rows = [
        {"case": str(i), "dtype": "float32", "shape_a": a, "shape_b": b, "flops": a * b, "bytes_moved": 4 * a * b,
         "matmul_ceiling_flops_per_s": 1e11, "copy_ceiling_bytes_per_s": 1e10}
        for i, (a, b) in enumerate([(1, 7), (3, 2), (5, 9), (7, 1)])
    ]  # fmt: skip
    part = part_of(pd.DataFrame(rows), [])
    assert (part.x, part.variants, part.rate) == ("bytes_moved", ("case",), BYTES)


def test_the_shapes_of_a_case_are_read_as_the_command_line_spells_them(tmp_path: Path) -> None:
    run = new_run(tmp_path, "optimizer")
    write_json(run / "request.json", {"schema": 1})
    row = {"operation": "optimizer", "case": "small", "provider": "eager", "status": "ok"}
    write_run(run, [row | {"shape_shapes": [[768, 512], [768]], "shape_name": "small"}], pd.DataFrame())
    comparisons = read_comparisons(tmp_path)
    assert comparisons.damaged == ()
    assert comparisons.frame[["shape_shapes", "shape_name"]].to_numpy().tolist() == [["768x512+768", "small"]]
