"""`--where`: what a condition on columns means, and that it runs no code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import written

from scalebench.errors import InputError
from scalebench.points.table import read_columns, select_rows
from scalebench.points.where import parse

COLUMNS = {"params": "N", "loss": "L"}
GOOD = "N,L,kind,ok\n1e6,3.5,dense,True\n2e6,3.2,moe,False\n4e6,3,dense,True\n"


NUMBERS = {"N": [1.0, 2.0, np.nan], "a b": [3.0, 2.0, 1.0]}
TEXTS = {"kind": ["x", "y`", ""]}


def column(name: str, kind: str) -> np.ndarray:
    return np.array(TEXTS[name], dtype=object) if kind == "text" else np.array(NUMBERS[name])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("N > 1", [0, 1, 0]), ("N != 1", [0, 1, 1]), ("not N == 1", [0, 1, 1]), ("1 <= N < 2", [1, 0, 0]),
        ("N == 1 or `a b` == 1", [1, 0, 1]), ("N + `a b` / 2 >= 2.5 and N < 9", [1, 1, 0]), ("-N ** 2 < -3", [0, 1, 0]),
        ("N in [1, 7]", [1, 0, 0]), ("N not in (1, -2)", [0, 1, 1]), ("kind == 'x'", [1, 0, 0]),
        ("kind in ['x', '']", [1, 0, 1]), ("'y`' == kind", [0, 1, 0]), ("N == True", [1, 0, 0]),
        ("N % 2 == 0", [0, 1, 0]), ("N == true or N == `a b`", [1, 1, 0]), ("1 < 2 and 0 < N < 2 < 3", [1, 0, 0]),
        ("kind > 'x'", [0, 1, 0]),
        ("(kind == 'x') + (N > 1) >= 1", [1, 1, 0]), ("N / 0 > 1", [1, 1, 0]), ("10 ** 10 ** 10 > N", [1, 1, 0]),
    ],
)  # fmt: skip
def test_where_means_what_python_would(text: str, expected: list[int]) -> None:
    assert parse(text).mask(column, 3).astype(int).tolist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch owned')", "().__class__.__bases__[0].__subclasses__() == N", "N.real > 1",
        "open('owned', 'w')", "[x for x in N]", "lambda: 1", "N[0] > 1", "f'{N}' == kind", "(N := 1) > 0",
        "N if N > 1 else N", "exec('1') == N", "N > 1; N", "import os", "N = 1", "", "N >", "N", "N and N > 1", "1 < 2",
        "N > 1 & N < 3", "(N > 1) | (N < 3)", "~(N > 1)", "N == 1j", "N is None", "kind == b'x'", "kind == 'a' < 3",
        "'x' * 10 ** 9 == kind", "N in N", "[1] < N", "N == ...", "kind in ['a', 1]", "`N > 1", "'", "*N",
        "-" * 900 + "N > 1", "not " * 240 + "N > 1", "(" * 300 + "N" + ")" * 300 + " > 1", "9" * 400 + " > N",
        "N > 1 or " * 300 + "N > 2", "{N} == 1", "{1: N} == 1",
        "N > '1e8'", "'9' >= kind", "1 < N < '3M'", "print(N) == 1", "N @ N > 1", "N << 2 > 1",
    ],
)  # fmt: skip
def test_where_refuses_everything_else_and_runs_no_code(tmp_path: Path, monkeypatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--where[^\n]*$"):
        parse(text)
    assert not list(tmp_path.iterdir())


def test_where_reads_truth_of_text_columns(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    for where in ("ok == True", "ok == true", "ok != false", "ok == 1", "ok == 'True'", "ok in [1]"):
        assert len(read_columns(path, COLUMNS, where)) == 2


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("k == 'a'", [0]), ("k != 'a'", [1, 2]), ("k in ['', 'b']", [1, 2]), ("b == true", [0, 2]),
        ("b == 'True'", [0, 2]), ("i == 1", [0]), ("i != 1", [1, 2]), ("i in [1, 3]", [0, 2]),
    ],
)  # fmt: skip
def test_where_reads_columns_of_any_type(tmp_path: Path, where: str, rows: list[int]) -> None:
    frame = pd.DataFrame({"N": [1.0, 2.0, 4.0], "L": [3, 2, 1], "k": pd.Categorical(["a", "b", None])})
    frame = frame.assign(b=[True, False, True], i=pd.array([1, None, 3], dtype="Int64"))
    frame.to_parquet(tmp_path / "p.parquet")
    assert read_columns(tmp_path / "p.parquet", {"params": "N"}, where).values["params"].tolist() == [*frame["N"][rows]]
    assert select_rows(tmp_path, frame, where).index.tolist() == rows


def test_where_on_a_data_frame_refuses_unknown_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"family": ["gpt"], "seed": [0]})
    with pytest.raises(InputError, match=r"column unknown 'familly'; did you mean 'family'"):
        select_rows(tmp_path, frame, "familly == 'gpt'")
    assert select_rows(tmp_path, frame, None) is frame
    with pytest.raises(InputError, match=r"column unknown 'mode'.*now called 'workload'"):
        select_rows(tmp_path, frame.assign(workload="training"), "mode == 'training'")


@pytest.mark.parametrize("text", ["params = 1e7", "params=1e7", "kind = 'dense' and N > 3"])
def test_a_single_equals_sign_is_explained(text: str) -> None:
    with pytest.raises(InputError, match=r"is not an expression \(equality is ==\)"):
        parse(text)


@pytest.mark.parametrize("text", ["N >=", "N != 3 !", "N == "])
def test_other_slips_are_not_taken_for_it(text: str) -> None:
    with pytest.raises(InputError, match=r"is not an expression \((?!equality)"):
        parse(text)
