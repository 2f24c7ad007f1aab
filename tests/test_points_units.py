"""Counts whose unit stands in the header: read in that unit, and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalebench.points import numerals
from scalebench.points.table import read_columns


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("Params (M)", 1e6), ("tokens [B]", 1e9), ("Tokens (billions)", 1e9),
        ("size (in millions)", 1e6), ("N (k)", 1e3),
        ("D (T)", 1e12), ("n (thousand)", 1e3), ("D (bn)", 1e9), ("params", 1), ("N (non-embedding)", 1), ("M", 1),
        ("loss (nats)", 1), ("params (MB)", 1), ("(M) params", 1),
    ],
)  # fmt: skip
def test_units_of_headers(name: str, unit: float) -> None:
    assert numerals.header_unit(name) == unit


def test_a_table_with_units_is_that_of_the_counts(tmp_path: Path) -> None:
    path = tmp_path / "hand.csv"
    path.write_text("Params (M);Tokens (B);Loss (B)\n70;1,4;3,5\n410;8,2;2,9\n")
    columns = {"params": "Params (M)", "tokens": "Tokens (B)", "loss": "Loss (B)"}
    table = read_columns(path, columns)
    assert table.values["params"].tolist() == pytest.approx([70e6, 410e6])
    assert table.values["tokens"].tolist() == pytest.approx([1.4e9, 8.2e9])
    assert table.values["loss"].tolist() == [3.5, 2.9]  # no count
    assert table.note == "column 'Params (M)' in units of 1,000,000; column 'Tokens (B)' in units of 1,000,000,000"
