"""Commands that a message suggests can be pasted into a shell, whatever the names of folders."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from command_support import planted, write_study

FOLDER = "it's mine"
CHILD = 'schema = 1\nname = "child"\n[from]\nstudy = "demo"\n[train]\nsteps = 5\n'


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (("plan", "child.toml", "--results", FOLDER), f"--results {shlex.quote(FOLDER)}; run --with-parents"),
        (("show", FOLDER), f"scalebench show --results {shlex.quote(FOLDER)}"),
        (("predict", f"{FOLDER}/p.csv", "--params", "3"), f"scalebench fit {shlex.quote(FOLDER + '/p.csv')} --output"),
        (("new", "study", "mlp", "-o", f"{FOLDER}/s.toml"), f"scalebench plan {shlex.quote(FOLDER + '/s.toml')}"),
    ],
)
def test_a_folder_with_a_space_and_a_quote_is_quoted(
    command, tmp_path: Path, words: tuple[str, ...], suggestion: str
) -> None:
    write_study(tmp_path / FOLDER / "planted", planted())
    (tmp_path / "child.toml").write_text(CHILD)
    (tmp_path / FOLDER / "p.csv").write_text("params,loss\n1,2\n")
    _, out, err = command(*words)
    assert suggestion in out + err
