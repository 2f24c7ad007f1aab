"""Numbers as spreadsheets of other countries write them, sizes with suffixes in --where, and FLOPs beside tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalebench.errors import InputError
from scalebench.points.numerals import mark_of, number, plain
from scalebench.points.table import read_columns
from scalebench.points.where import parse

SIZES = (300e3, 1e6, 30e6, 1e9)
COLUMNS = {"params": "params", "loss": "loss"}


def dotted(value: float) -> str:
    return f"{value:,.0f}".replace(",", ".")


@pytest.mark.parametrize("loss", ["3,46", "3.500"])
def test_dots_between_thousands_are_read_where_the_file_shows_what_they_are(tmp_path: Path, loss: str) -> None:
    """A loss of 3.500 in such a file is the number that it is by the file's own rule: three and a half thousand."""
    path = tmp_path / "p.csv"
    path.write_text("params;loss\n" + "".join(f"{dotted(n)};{loss if n < 1e6 else '2,5'}\n" for n in SIZES))
    values = read_columns(path, COLUMNS).values
    assert values["params"].tolist() == [*SIZES]
    assert values["loss"][0] == (3.46 if "," in loss else 3500)


def test_a_column_of_thousands_alone_is_read_by_the_mark_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("params;loss\n300.000;3,1\n500.000;2,9\n")
    assert read_columns(path, COLUMNS).values["params"].tolist() == [3e5, 5e5]


@pytest.mark.parametrize(
    ("row", "loss"), [("1e6;3,464\n2e6;3,291\n", [3.464, 3.291]), ("300.000;3,464\n500.000;3,291\n", [3.464, 3.291])]
)
def test_a_comma_between_semicolons_is_a_decimal_comma(tmp_path: Path, row: str, loss: list[float]) -> None:
    path = tmp_path / "p.csv"
    path.write_text("params;loss\n" + row)
    values = read_columns(path, COLUMNS).values
    assert values["loss"].tolist() == loss
    assert values["params"].tolist() == ([1e6, 2e6] if "e6" in row else [3e5, 5e5])


@pytest.mark.parametrize("content", ["params;loss\n4,608;2.5\n9,216;2.4\n", "params\tloss\n1e6\t3,464\n2e6\t3,291\n"])
def test_a_comma_that_may_mean_two_things_is_still_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"write numbers as 1234567\.8"):
        read_columns(path, COLUMNS)


def test_a_wrong_number_is_no_longer_ambiguous_where_the_file_shows_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("params;loss\n1e6;3,46\n2e6;-3,291\n")
    with pytest.raises(InputError, match=r"column 'loss': -3\.291 is negative"):
        read_columns(path, COLUMNS)


def test_an_option_that_may_mean_two_numbers_names_both() -> None:
    with pytest.raises(ValueError, match=r"'1,000k' is ambiguous: 1000k or, with a decimal comma, 1\.000k"):
        number("1,000k")


def test_points_between_semicolons_stay_decimal_points(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("params;loss\n1e6;4.608\n2e6;4.102\n")
    assert read_columns(path, COLUMNS).values["loss"].tolist() == [4.608, 4.102]


def test_a_dot_is_a_decimal_point_in_a_file_without_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("params,loss\n1e6,4.608\n2e6,4.102\n")
    assert read_columns(path, COLUMNS).values["loss"].tolist() == [4.608, 4.102]
    assert mark_of(["4.608"]) is None
    assert (mark_of(["1.234.567"]), plain("1.234.567", ",")) == (",", "1234567")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("N > 124M", True), ("N >= 1.3B", False), ("N > 124M and kind == '124M'", True), ("`a 5M` > 1", True)],
)
def test_sizes_in_where_may_have_suffixes(text: str, expected: bool) -> None:
    values = {"N": 2e8, "kind": "124M", "a 5M": 2.0}
    where = parse(text)
    assert {*where.names} <= {*values}
    assert bool(where.mask(lambda name, _: values[name], 1)[0]) is expected


def test_a_suffix_without_a_number_is_no_size() -> None:
    for text in ("N > 5Mx", "N > M 5", "N > 5 M"):
        with pytest.raises(InputError):
            parse(text)


def test_flops_stand_in_for_tokens_only_where_the_file_has_none(command, tmp_path: Path) -> None:
    grid = [(n, d, 1.7 + 400 * n**-0.34 + 410 * d**-0.28) for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    for name, with_tokens in (("both.csv", True), ("flops.csv", False)):
        head = "params,tokens,flops,loss" if with_tokens else "params,flops,loss"
        rows = [
            ",".join(f"{x:.8g}" for x in ((n, d, 1e9, loss) if with_tokens else (n, 6 * n * d, loss)))
            for n, d, loss in grid
        ]
        (tmp_path / name).write_text("\n".join([head, *rows]))
        options = ("--law", "chinchilla", "--flops-column", "flops", "--bootstrap", "5", "--json")
        code, out, err = command("fit", name, *options)
        assert code == 0, err
        assert json.loads(out)["points"]["tokens"] == pytest.approx([d for _, d, _ in grid], rel=1e-6)
        assert ("not used by chinchilla: column 'flops'" in err) is with_tokens
