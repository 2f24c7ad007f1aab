"""Points of any trainer: what is read, and that errors name file, line and column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import written

from scalebench.errors import InputError
from scalebench.points import table as points
from scalebench.points.fit_file import fit_points
from scalebench.points.table import read_columns

COLUMNS = {"params": "N", "loss": "L"}
GOOD = "N,L,kind,ok\n1e6,3.5,dense,True\n2e6,3.2,moe,False\n4e6,3,dense,True\n"


def refused(path: Path, where: str | None = None, columns=COLUMNS) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read_columns(path, columns, where)
    return caught.value.lines


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("4,608", "'4,608' is ambiguous: 4608 or, with a decimal comma, 4.608; write numbers as 1234567.8"),
        ("4,608M", "'4,608M' is ambiguous: 4608M or, with a decimal comma, 4.608M; write numbers as 1234567.8"),
        ("1 00 000", "'1 00 000' has a comma, a space or the like in it; write numbers as 1234567.8"),
        ("10_0.5", "'10_0.5' has a comma, a space or the like in it; write numbers as 1234567.8"),
        ("10X", "'10X' is not a number; a positive number is needed"),
        ("", "empty; a positive number is needed; --where 'L > 0' leaves such rows out"),
        ("NaN", "NaN is not finite; a positive number is needed; --where 'L > 0' leaves such rows out"),
        ("-1", "-1 is negative; a positive number is needed"),
    ],
)
def test_a_wrong_cell_is_reported_with_a_remedy(tmp_path: Path, cell: str, message: str) -> None:
    path = written(tmp_path, GOOD.replace(",", ";").replace("3.2", cell))
    assert refused(path) == (f"{path}, line 3, column 'L': {message}",)


def test_rows_without_a_value_can_be_left_out(tmp_path: Path) -> None:
    for missing in ("", "NaN", "null"):
        table = read_columns(written(tmp_path, GOOD.replace("3.2", missing)), COLUMNS, "L > 0")
        assert table.values["loss"].tolist() == [3.5, 3.0]


def test_a_missing_column_names_its_option(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with pytest.raises(InputError) as caught:
        read_columns(
            path, {"params": "N", "loss": "nats"}, options={"loss": "--loss-column", "params": "--params-column"}
        )
    assert caught.value.lines == (f"{path}: column unknown 'nats' (known: N, L, kind, ok); name it with --loss-column",)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        "\n\n" + GOOD.replace("2e6", "\n\n2e6"),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(",", ", ").replace("2e6", '"2000000"'),
        GOOD.rstrip(),
        "sep=;\n" + GOOD.replace(",", ";"),
        '"sep=|"\r\n' + GOOD.replace(",", "|").replace("\n", "\r\n"),
    ],
    ids=[
        "plain",
        "bom",
        "empty-lines",
        "semicolons",
        "tabs",
        "crlf",
        "spaces",
        "no-newline-at-the-end",
        "sep",
        "sep-|",
    ],
)
def test_values_are_read_whatever_the_dialect(tmp_path: Path, content: str) -> None:
    table = read_columns(written(tmp_path, content), COLUMNS)
    assert table.values["params"].tolist() == [1e6, 2e6, 4e6]
    assert table.values["loss"].tolist() == [3.5, 3.2, 3.0]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["124M", "1.3B", "300B"], [124e6, 1.3e9, 300e9]),
        (["10K", "2 M", "1.5T"], [1e4, 2e6, 1.5e12]),
        (["1,234,567", "4,608", "10"], [1234567, 4608, 10]),  # the first decides what the second is
        (["3,14", "4,608", "10"], [3.14, 4.608, 10]),
        (["1.234.567,5", "4,608", "2,5e3"], [1234567.5, 4.608, 2500]),
        (["1_000", "1 234 567", "1'000.5"], [1000, 1234567, 1000.5]),
        (["1,3B", "2", "3"], [1.3e9, 2, 3]),
    ],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, cells: list[str], values: list[float]) -> None:
    lines = ["N;L", *(f"{cell};{3 - i}" for i, cell in enumerate(cells))]
    table = read_columns(written(tmp_path, "\n".join(lines)), COLUMNS)
    assert table.values["params"].tolist() == values
    assert table.values["loss"].tolist() == [3, 2, 1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_the_encoding_is_that_of_the_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    text = GOOD if encoding in ("utf-16", "utf-8-sig") else "\ufeff" + GOOD
    path = written(tmp_path, text.encode(encoding))
    assert read_columns(path, COLUMNS).values["params"].tolist() == [1e6, 2e6, 4e6]
    (line,) = refused(written(tmp_path, text.replace("2e6", "oops").encode(encoding)))
    assert line.startswith(f"{path}, line 3, column 'N': 'oops' is not a number")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_are_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"N": 1e6, "L": 3.5, "config": {"lr": 1}}, {"N": 2e6, "L": 3.2}, {"N": "4M", "L": 3.0}]
    rows = [{**row, "N": str(row["N"])} for row in rows]
    content = "\n".join(map(json.dumps, rows)).encode()
    path = written(tmp_path, gzip.compress(content) if suffix.endswith("gz") else content, f"p{suffix}")
    assert read_columns(path, COLUMNS).values["params"].tolist() == [1e6, 2e6, 4e6]
    assert read_columns(path, COLUMNS, "L < 3.4").values["loss"].tolist() == [3.2, 3.0]


def test_a_wrong_value_in_json_lines_is_on_the_line_that_editors_show(tmp_path: Path) -> None:
    path = written(tmp_path, '{"N": 1e6, "L": 3}\n\n{"N": 2e6, "L": -2}\n', "p.jsonl")
    (line,) = refused(path)
    assert line.startswith(f"{path}, line 3, column 'L': -2 is negative")


def test_the_last_complete_row_of_each_run_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "run,N,L\na,1,9\na,1,8\nb,2,7\na,1,\nb,2,6\nc,4,5\n")
    table = read_columns(path, COLUMNS, last_of="run")
    assert table.values["params"].tolist() == [1, 2, 4]
    assert table.values["loss"].tolist() == [8, 6, 5]
    assert set(table.columns) == {"params", "loss"}


def test_a_gzipped_csv_is_read_and_its_errors_have_lines(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(GOOD.encode()), "p.csv.gz")
    assert read_columns(path, COLUMNS).values["params"].tolist() == [1e6, 2e6, 4e6]
    path.write_bytes(gzip.compress(GOOD.replace("2e6", "oops").encode()))
    assert refused(path)[0].startswith(f"{path}, line 3, column 'N': 'oops' is not a number")
    path.write_bytes(gzip.compress(GOOD.encode())[:-20])
    assert refused(path)[0].startswith(f"{path}: not readable as ")
    path.write_bytes(GOOD.encode())
    assert refused(path)[0].startswith(f"{path}: cannot be read (Not a gzipped file")


@pytest.mark.slow
def test_csv_and_parquet_give_the_same_points_over_many_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"N": rng.uniform(1, 9, 400_000), "L": rng.uniform(1, 9, 400_000), "more": "x" * 30})
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_parquet(tmp_path / "p.parquet", index=False)
    selected = frame[(frame["N"] > 5) & (frame["L"] * 2 < frame["N"])]
    for name in ("p.csv", "p.parquet"):
        table = read_columns(tmp_path / name, COLUMNS, "N > 5 and L * 2 < N")
        assert np.array_equal(table.values["params"], selected["N"])
        assert np.array_equal(table.values["loss"], selected["L"])


@pytest.mark.slow
def test_a_bad_value_in_a_late_block_is_found_at_its_line(tmp_path: Path) -> None:
    lines = ["N,L,padding", *(f"{i + 1},2,{'x' * 90}" for i in range(300_000))]
    lines[250_000] = "oops,2,x"
    (line,) = refused(written(tmp_path, "\n".join(lines)))
    assert "p.csv, line 250001, column 'N': 'oops' is not a number" in line


@pytest.mark.parametrize("note", [b"x" * 200_000, b"caf\xe9"], ids=["longer than 128 KiB", "not UTF-8"])
def test_other_columns_do_not_hide_the_line_of_a_wrong_value(tmp_path: Path, note: bytes) -> None:
    rows = b"1,2,x\n" * 10_000  # beyond the part that is decoded with the header
    path = written(tmp_path, b"N,L,note\n" + rows + b"1,2," + note + b"\noops,2,x\n")
    assert refused(path)[0].startswith(f"{path}, line 10003, column 'N': 'oops' is not a number")


def test_more_points_than_a_fit_can_hold_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(points, "MAX_POINTS", 2)
    assert refused(written(tmp_path, GOOD))[0].endswith(
        "more than 2 points; select fewer with --where, or average repeats"
    )


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("abc", "'abc' is not a number"), ("", "empty"), ("nan", "nan is not finite"),
        ("inf", "inf is not finite"), ("-inf", "-inf is not finite"), ("1e400", "1e400 is not finite"),
        ("0", "0 is zero"), ("-3", "-3 is negative"), ("1_0", "'1_0' has a comma"), ("true", "'true' is not"),
        ('"1,500"', "'1,500' is ambiguous: 1500 or, with a decimal comma, 1.500"),
        ('"2\n2"', "'2\\n2' is not a number"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_with_file_line_and_column(tmp_path: Path, cell: str, fault: str) -> None:
    path = written(tmp_path, GOOD.replace("2e6", cell))
    (line,) = refused(path)
    at = 4 if "\n" in cell else 3  # the row ends on the line after the one it starts on
    assert line.startswith(f"{path}, line {at}, column 'N': {fault}")


def test_wrong_values_are_counted_with_a_line_per_column(tmp_path: Path) -> None:
    first, second = refused(written(tmp_path, "N,L\n1,0\n-1,2\n-2,-3\n"))
    assert "line 3, column 'N'" in first
    assert first.endswith("(and 1 more)")
    assert "line 2, column 'L'" in second


def test_values_that_where_leaves_out_may_be_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("2e6", "oops"))
    assert len(read_columns(path, COLUMNS, "kind == 'dense'")) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "p.csv: the file is empty; it needs a line of column names"),
        ("\n \n\n", "p.csv: the file is empty"),
        ("N,L\n", "p.csv: column names but no rows"),
        ("N,L,N\n1,2,3\n", "p.csv, line 1: column 'N' appears 2 times, at positions 1, 3"),
        ("N,L\n1,2\n3\n", "p.csv, line 3: 1 columns, but the header has 2: '3'"),
        ("N,L\n1,2\n3,4,5\n", "p.csv, line 3: 3 columns, but the header has 2"),
        ('N,L,k\n1,2,"a\nb"\n\n3\n', "p.csv, line 5: 1 columns, but the header has 3: '3'"),
        ("N,L\n5,2\n5,4\n", "p.csv: column 'N' is 5 in all 2 rows; it has to vary"),
        (b"\xff\xfeN\x00,L\n1,2\n", "p.csv: not a text file in UTF-8"),
        ("x" * 2_000_000, "p.csv: its first line has over 1,048,576 characters"),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    (line,) = refused(written(tmp_path, content))
    assert expected in line


def test_missing_columns_are_listed_with_a_suggestion(tmp_path: Path) -> None:
    first, second = refused(written(tmp_path, "Params,Loss\n1,2\n"), columns={"params": "params", "loss": "Lss"})
    assert first.endswith("column unknown 'params'; did you mean 'Params'? (known: Params, Loss)")
    assert second.endswith("column unknown 'Lss'; did you mean 'Loss'? (known: Params, Loss)")
    assert refused(written(tmp_path, "1,2\n3,4\n"))[-1].endswith("it must name the columns")


def test_a_comment_in_the_place_of_the_column_names_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("# measured in May\nparams,loss\n1,2\n")
    with pytest.raises(InputError, match="the first line is a comment; it must name the columns"):
        read_columns(path, {"params": "params"})


def test_a_title_above_the_column_names_is_pointed_out(tmp_path: Path) -> None:
    lines = refused(written(tmp_path, "My sweep,,\n,,\nparams,tokens,loss\n1,2,3\n"))
    assert lines[-1].endswith("the first line names few columns; delete the lines above the one that names them all")
    assert not any("few columns" in line for line in refused(written(tmp_path, "Params,Loss,\n1,2,\n")))


def test_a_suggestion_has_the_word_that_was_given(tmp_path: Path) -> None:
    (line,) = refused(written(tmp_path, "GPU hours,FLOPs,Eval Loss\n1,2,3\n"), columns={"loss": "loss"})
    assert "did you mean 'Eval Loss'?" in line


@pytest.mark.parametrize("content", ['[{"params": 1, "loss": 2}]', '\n [\n{"params": 1}\n]'])
def test_a_json_array_is_named_with_what_to_write(tmp_path: Path, content: str) -> None:
    (line,) = refused(written(tmp_path, content, "p.jsonl"))
    assert "a JSON array, not JSON lines; write an object in each line" in line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "p.xlsx").touch()
    (line,) = refused(tmp_path / "p.xlsx")
    assert "suffix '.xlsx' is not one of .csv" in line
    assert "save it as CSV or Parquet" in line
    assert "cannot be read (No such file" in refused(tmp_path / "absent.csv")[0]
    assert "not readable as Parquet" in refused(written(tmp_path, b"PAR1" + bytes(99), "p.parquet"))[0]


def test_too_few_points_and_none_selected(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with pytest.raises(
        InputError, match=r"p\.csv: 2 configurations for 3 free parameters .*2 points .*kind == 'dense'"
    ):
        fit_points(path, "power", {"params": "N", "loss": "L"}, "kind == 'dense'", {})
    assert refused(path, "kind == 'none'") == (f"{path}: --where \"kind == 'none'\" selects none of 3 rows",)
    assert "did you mean 'kind'" in refused(path, "knd == 'a'")[0]


def test_a_wrong_value_in_parquet_is_reported_by_row(tmp_path: Path) -> None:
    pd.DataFrame({"N": [1.0, 2.0, np.nan], "L": [1, 2, 3]}).to_parquet(tmp_path / "p.parquet")
    assert "p.parquet, row 3, column 'N': empty" in refused(tmp_path / "p.parquet")[0]
