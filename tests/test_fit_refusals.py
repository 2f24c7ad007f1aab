"""`scalebench fit` with wrong input: one line that says what to change, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_support import CHINCHILLA, surface


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("absent.csv",), "absent.csv: cannot be read"),
        (("p.csv", "--law", "chinchila"), "--law: unknown 'chinchila'; did you mean 'chinchilla'?"),
        (("p.csv", "--loss-column", "L"), "p.csv: column unknown 'params'"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "kind"), "line 2, column 'kind': 'small' is not a number"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--where", "N > 1e99"), "selects none of 25 rows"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--where", "__import__('os').system('x')"), "is not allowed"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--where", "N < 2e7"), "column 'N' is 1e+07 in all 5 rows"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--where", "N<2e7 and D<2e9"), "1 points selected by"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "N"), "p.csv: columns params, tokens lie on one line"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--loss", "hubber"), "p.csv: loss 'hubber' is not known"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--delta", "0"), "p.csv: delta is 0.0"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--fix", "E"), "--fix E: expected NAME=NUMBER"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--fix", "F=1"), "p.csv: fixed names 'F'"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--bootstrap", "1"), "--bootstrap 1: intervals need"),
        ((*CHINCHILLA, "p.csv", "--tokens-column", "D", "--output", "p.csv/f.json"), "p.csv/f.json: cannot be written"),
        (("empty",), "empty: no results here"),
        (("absent",), "absent: there is no such file or folder"),
        (("absent.csv",), "absent.csv: cannot be read (No such file or directory)"),
        (("p.json",), "suffix '.json' is not one of .csv, .tsv, .csv.gz, .tsv.gz, .jsonl, .jsonl.gz, .ndjson, .parq"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path: Path, arguments, expected: str) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.json").write_text("{}")
    code, _, err = command("fit", *arguments)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert expected in line


def test_duplicate_headers_and_an_empty_file_exit_2(command, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("params,loss,loss\n1,2,3\n")
    (tmp_path / "none.csv").write_text("")
    assert "column 'loss' appears 2 times, at positions 2, 3" in command("fit", "two.csv")[2]
    assert "none.csv: the file is empty" in command("fit", "none.csv")[2]
    assert command("fit", "none.csv")[0] == 2
