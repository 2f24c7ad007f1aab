"""What commands print and write: the width of lines, terminals that cannot show a character, devices and links."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from command_support import CHINCHILLA, surface
from support import REPOSITORY, child_environment, source_tree

from scalebench.cli import output
from scalebench.cli.counted import counted
from scalebench.errors import number_of
from scalebench.store import StoreError, write_output, write_table

ROWS = [
    ("a provider", "12.5 ms", "8.83 to 17.6 ms", "21.5 G", "1.09 GB"),
    ("sdpa", "9 ms", "6 to 13 ms", "29 G", "1 M"),
]
HEADER = ("provider", "time", "95 % interval", "FLOP/s", "memory")


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "GPU", "1 GPU"), (0, "GPU", "0 GPUs"), (2, "process", "2 processes"), (3, "batch", "3 batches"),
     (1.0, "core", "1 core"), (2.5, "bit", "2.5 bits")],
)  # fmt: skip
def test_numbers_of_things_are_singular_for_one_alone(count: float, noun: str, text: str) -> None:
    assert number_of(count, noun) == text


# --- width -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 50, 80])
def test_tables_fit_and_no_cell_is_lost(columns: int, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    output.table("a title that says what the table is about and is longer than forty columns", HEADER, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert all(cell in text for row in (HEADER, *ROWS) for cell in row)
    if columns == 40:
        assert text.count("a provider") > 1  # each part names its rows
    else:
        assert text.count("a provider") == (1 if columns == 80 else 2)


def test_texts_are_wrapped_between_words_before_a_table_is_divided(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    reason = "the points do not separate its parameters, so that only predictions mean something"
    output.table("", ("law", "error", "reason"), [("power", "1 %", reason), ("kaplan", "2 %", "")], last_is_text=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(word for line in lines for word in line.split() if word in reason.split()) == reason
    assert lines[0].split() == ["law", "error", "reason"]


def test_lines_are_broken_between_words(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    output.say("    one two three four five six seven eight nine", "x" * 60)
    first, second, third = capsys.readouterr().out.splitlines()
    assert (first, second) == ("    one two three four five six seven", "      eight nine")
    assert third == "x" * 60


@pytest.mark.parametrize("arguments", [("plan", "gpt"), ("list",), ("list", "--columns"), ("plan", "inference")])
def test_commands_fit_eighty_columns_in_a_pipe(command, monkeypatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = command(*arguments)
    assert {line for line in out.splitlines() if len(line) > 80} == set()


@pytest.mark.usefixtures("few_refits")
def test_fits_and_optima_fit_eighty_columns(command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    surface(0.01).to_csv(tmp_path / "p.csv", index=False)
    for name in ("fit", "optimal"):
        law = CHINCHILLA[:2] if name == "fit" else ("--approach", "3")
        _, out, _ = command(name, "p.csv", *law, *CHINCHILLA[2:], "--tokens-column", "D")
        assert {line for line in out.splitlines() if len(line) > 80} == set()


# --- many equal errors -----------------------------------------------------------------------------------------------


def test_equal_lines_become_one_with_their_number() -> None:
    lines = [f"results/s/trials/{i:016x}/steps.parquet: missing (4{i} bytes)" for i in range(3000)]
    (line,) = counted(lines)
    assert line == f"{lines[0]} (and 2999 more like it)"
    assert counted(["a: x", "b: y"]) == ["a: x", "b: y"]
    assert counted(["p/1: x"] * 2 + ["other"]) == ["p/1: x", "p/1: x", "other"]


# --- locales and terminals -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_character_gets_a_replacement(tmp_path: Path, encoding: str) -> None:
    surface(0.01).to_csv(tmp_path / "p.csv", index=False)
    line = ["fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--bootstrap", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "scalebench", *line], cwd=tmp_path, capture_output=True,
        env=child_environment(PYTHONIOENCODING=encoding, COLUMNS="80"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"delta = 0.001" in done.stdout


def test_every_text_file_is_opened_with_its_encoding() -> None:
    """Python would use the locale's otherwise; the warning of PEP 597 finds a call that names none."""
    missing = []
    for path in (REPOSITORY / "scalebench").rglob("*.py"):
        for node in ast.walk(source_tree(path)) if "_text(" in path.read_text(encoding="utf-8") else ():
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            if node.func.attr == "read_text" and not node.args and not named:
                missing.append(f"{path}:{node.lineno}")
            if node.func.attr == "write_text" and len(node.args) == 1 and not named:
                missing.append(f"{path}:{node.lineno}")
    assert missing == []


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_the_mode_of_an_existing_file_and_a_link_are_kept(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "page.html", tmp_path / "link.html", tmp_path / "new.html"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    write_output(link, b"after")
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode), link.is_symlink()) == (b"after", 0o600, True)
    dangling.symlink_to(tmp_path / "made.html")
    write_output(dangling, b"made")
    assert (tmp_path / "made.html").read_bytes() == b"made"
    assert dangling.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "made.html", "new.html", "page.html"]


def test_a_fifo_is_written_through(tmp_path: Path) -> None:
    fifo, read = tmp_path / "pipe.csv", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    write_table(pd.DataFrame({"a": [1]}), fifo)
    reader.join(timeout=10)
    assert read == [b"a\n1\n"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_devices_are_written_to_and_never_replaced(command, tmp_path: Path) -> None:
    surface().to_csv(tmp_path / "p.csv", index=False)
    before = Path("/dev/null").stat()
    fit = ("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--bootstrap", "9", "-o")
    assert command(*fit, "/dev/null")[0] == 0
    after = Path("/dev/null").stat()
    assert (after.st_ino, after.st_rdev, stat.S_ISCHR(after.st_mode)) == (before.st_ino, before.st_rdev, True)
    code, _, err = command(*fit, "/dev/full")
    assert code == 2
    assert err.splitlines()[-1] == "/dev/full: cannot be written (No space left on device)"


def test_a_folder_as_output_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_table(pd.DataFrame({"a": [1]}), _folder(tmp_path / "x.csv"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_its_own_code() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scalebench", "list"], stdout=full, stderr=subprocess.PIPE, env=child_environment()
        )
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert "No space left on device" in line


def test_a_file_whose_name_is_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("漢" * 83 + ".csv")  # 253 of 255 bytes
    write_output(path, b"content")
    assert path.read_bytes() == b"content"
