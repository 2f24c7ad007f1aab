"""Text files as people have them: encodings, compression, separators and marks between thousands, all read alike."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import written

from scalebench.errors import InputError
from scalebench.points.fit_file import fit_points
from scalebench.points.numerals import number
from scalebench.points.roles import read_roles
from scalebench.points.table import read_columns

COLUMNS = {"params": "N", "loss": "L"}
ROWS = [(1e7 * 3**i, 1e9 * 10**j, 2 + 0.1234 * i + 0.01 * j) for i in range(3) for j in range(2)]
NAMES = {"params": "params", "tokens": "tokens", "loss": "loss"}


def text(separator: str = ",", ends: str = "\n", head: str = "") -> str:
    lines = [separator.join(NAMES), *(separator.join((f"{p:.0f}", f"{t:.0f}", f"{y:.4f}")) for p, t, y in ROWS)]
    return head + ends.join(lines) + ends


def grouped(mark: str) -> str:
    """The rows with a mark between thousands."""
    lines = [";".join((f"{p:,.0f}".replace(",", mark), f"{t:,.0f}".replace(",", mark), f"{y:.4f}")) for p, t, y in ROWS]
    return "\n".join([";".join(NAMES), *lines])


LINES = "\r\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS)
FILES = {
    "little-endian.csv": text().encode("utf-16-le"),
    "big-endian.tsv": text("\t").encode("utf-16-be"),
    "marked-big-endian.csv": b"\xfe\xff" + text(";").encode("utf-16-be"),
    "zipped.csv.gz": gzip.compress(text().encode("utf-16")),
    "zipped-in-two.csv.gz": gzip.compress(text()[:50].encode()) + gzip.compress(text()[50:].encode()),
    "CAPITALS.CSV.GZ": gzip.compress(text().encode()),
    "capitals.csv": text(":", "\r\n", "SEP=:\r\n").encode(),
    "separator.csv": text(";", "\r\n", "sep=;\r\n").encode("utf-16"),
    "pipes.csv": text("|").encode(),
    "swiss.csv": grouped("’").encode(),
    "thin.csv": grouped("\u2009").encode(),
    "lines.jsonl": LINES.encode("utf-16"),
    "lines.ndjson": LINES.encode(),
    "lines.jsonl.gz": gzip.compress(LINES.encode("utf-16-le")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_read_alike_however_it_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    read = read_columns(tmp_path / name, NAMES)
    values = np.array([read.values[role] for role in NAMES])
    assert values == pytest.approx(np.array(ROWS).T)


def test_the_encoding_of_a_column_that_is_not_read_does_not_matter(tmp_path: Path) -> None:
    lines = [f"{line},{'note' if i == 0 else 'café'}" for i, line in enumerate(text().splitlines())]
    (tmp_path / "p.csv").write_bytes("\n".join(lines).encode("latin-1"))
    assert len(read_columns(tmp_path / "p.csv", NAMES)) == len(ROWS)
    with pytest.raises(InputError, match=r"column #3: Row #2.*invalid UTF8"):
        read_columns(tmp_path / "p.csv", {**NAMES, "x": "note"})
    (tmp_path / "p.csv").write_bytes("\n".join(lines).replace("note", "Größe").encode("latin-1"))
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        read_columns(tmp_path / "p.csv", NAMES)


def test_numbers_of_options_take_the_same_marks() -> None:
    assert number("1’234’567") == number("1 234 567") == number("1'234'567") == 1234567.0
    assert number("1’300M") == 1.3e9


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / os.fsdecode(b"p\xe9" + suffix.encode())
    if suffix == ".parquet":
        path.write_bytes(pd.DataFrame(ROWS, columns=[*NAMES]).to_parquet())
    else:
        content = LINES if suffix == ".jsonl" else text()
        path.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    assert np.allclose(read_columns(path, NAMES).values["loss"], [row[2] for row in ROWS], atol=1e-4)


@pytest.mark.parametrize("rows", [",,\n,,\n", ",,\r\n", "\n,,\n\n"])
def test_empty_rows_that_a_spreadsheet_adds_are_left_out(tmp_path: Path, rows: str) -> None:
    path = written(tmp_path, f"N,L,kind\n1e6,3.5,dense\n2e6,3.2,moe\n{rows}")
    table = read_columns(path, COLUMNS)
    assert table.values["loss"].tolist() == [3.5, 3.2]
    assert table.note == ""


def test_empty_rows_between_others_are_counted_and_lines_stay_right(tmp_path: Path) -> None:
    text = "N,L,kind\n1e6,3.5,dense\n,,\n2e6,3.2,moe\n,,\n,,\n4e6,3.0,moe\n,,\n"
    assert read_columns(written(tmp_path, text), COLUMNS).note == "3 empty rows between others left out"
    with pytest.raises(InputError, match="line 7, column 'L': 'three' is not a number"):
        read_columns(written(tmp_path, text.replace("3.0", "three")), COLUMNS)


def test_a_row_with_another_cell_is_not_empty(tmp_path: Path) -> None:
    path = written(tmp_path, "N,L,kind\n1e6,3.5,dense\n,,moe\n2e6,3.2,moe\n,,\n")
    with pytest.raises(InputError, match="line 3, column 'N': empty"):
        read_columns(path, COLUMNS)


def test_names_of_columns_may_differ_in_upper_and_lower_case(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text(";").replace("params;tokens;loss", "Params;TOKENS;Loss"))
    _, read = fit_points(path, "power", {}, "TOKENS < 2e9", {})
    assert read.columns == {"params": "Params", "loss": "Loss"}
    assert [*read_roles(path, ("loss",), ("tokens", "flops"), {}, None)] == ["loss", "tokens"]
    both = path.read_text().replace("TOKENS", "PARAMS")
    path.write_text(both)
    with pytest.raises(InputError, match="unknown 'params'"):  # which of the two?
        fit_points(path, "power", {}, None, {})
