"""What TAB offers after the name of a command: studies, families, laws, operations, engines and trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_support import planted, write_study

TRIALS = [row["trial_id"] for row in planted()[:2]]


@pytest.fixture
def offered(command):
    """Return what the shell gets for the words of a command line, the last of them unfinished."""

    def complete(*words: str) -> list[str]:
        code, out, _ = command("__complete", *words)
        assert code == 0
        return [line.partition("\t")[0] for line in out.splitlines() if line.strip() and not line.startswith("\x1f")]

    return complete


def test_studies_are_offered_by_name_and_files_by_path(offered, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("mine.toml", "mine.txt", "inner/own.toml"):
        (tmp_path / name).write_text("")
    for verb in ("run", "plan"):
        assert {"demo", "gpt", "gpu-speed", "mine.toml", "inner/"} <= {*offered(verb, "")}
    assert "mine.txt" not in offered("run", "mi")
    assert [name for name in offered("run", "inn") if "/" in name] == ["inner/", "inner/own.toml"]
    assert [name for name in offered("run", "./inner/o") if "/" in name] == ["./inner/own.toml"]
    assert "demo" in offered("run", "no/such/folder/x")


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (("new", "study", ""), {"mlp", "gpt", "bert"}),
        (("fit", "points.csv", "--law", ""), {"power", "chinchilla", "data_constrained"}),
        (("run", "gpt", "--engine", ""), {"local", "ray", "slurm"}),
        (("compare", ""), {"attention", "cross-entropy", "norm"}),
    ],
)
def test_names_are_offered(offered, words: tuple[str, ...], known: set[str]) -> None:
    assert known <= {*offered(*words)}


def test_trials_of_the_folder_on_the_command_line_are_offered(offered, tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "gpt", planted()[:2])
    write_study(tmp_path / "other", planted()[2:3])
    assert offered("show", "") == TRIALS
    assert offered("generate", "results", "--trial", "") == TRIALS
    assert offered("serve", "") == offered("serve", "--trial", "") == TRIALS
    assert offered("drop", "results/gpt", "") == TRIALS
    assert offered("show", "--results", "other", "") == [planted()[2]["trial_id"]]
    assert offered("show", "--results", "nowhere", "") == []
