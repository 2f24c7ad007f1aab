"""A ``~`` is the home folder in study files and in options; whole numbers are not rounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_support import planted, write_study

from scalebench.errors import InputError
from scalebench.families import FAMILIES, check_named, file_sha256
from scalebench.running.planning import load_study
from scalebench.store import expanded

STUDY = """
schema = 1
name = "s"
[model]
family = "gpt"
params = 2e3
[data]
source = "text:~/notes"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder beside the working directory."""
    folder = tmp_path / "home of mine"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_only_a_leading_tilde_is_a_home(home: Path) -> None:
    assert expanded("~/x") == home / "x"
    assert expanded("a/~/x") == Path("a/~/x")
    with pytest.raises(InputError, match="no such user"):
        expanded("~nobody-of-this-name/x")


def test_paths_in_a_study_are_below_home(home: Path, command) -> None:
    (home / "notes").mkdir()
    for number in range(40):
        (home / "notes" / f"{number}.txt").write_text(f"{number} or not to be " * 200)
    (home / "s.toml").write_text(STUDY)
    assert command("plan", "~/s.toml", "--results=~/r")[0] == 0
    assert load_study("~/s.toml").origin == str(home / "s.toml")
    (home / "c.toml").write_text('schema = 1\nname = "c"\n[from]\nresults = "~/trained"\n')
    parents = load_study("~/c.toml").parents
    assert parents is not None
    assert parents.results == str(home / "trained")
    code, _, err = command("plan", "~/c.toml")
    assert code == 2
    assert str(home / "trained") in err


def test_an_own_family_below_home_is_found_and_named_either_way(home: Path) -> None:
    (home / "model.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="lacks Config"):
        FAMILIES["~/model.py"]
    sha256 = file_sha256("~/model.py")
    assert sha256 == file_sha256(str(home / "model.py"))
    check_named("~/model.py", sha256, [str(home / "model.py")])


@pytest.mark.slow
def test_options_are_below_home(home: Path, command, tmp_path: Path) -> None:
    write_study(home / "results" / "planted", planted())
    code, out, err = command("export", "~/results", "--output=~/x.csv", "--json")
    assert code == 0, err
    assert [file["path"] for file in json.loads(out)["written"]] == [str(home / "x.csv")]
    assert command("report", "~/results", "-o=~/page.html")[0] == 0
    assert command("fit", "~/x.csv", "--bootstrap", "9", "-o=~/fit.json")[0] == 0
    assert command("predict", "~/fit.json", "--params", "1e7")[0] == 0
    assert {"results", "x.csv", "page.html", "fit.json"} <= {path.name for path in home.iterdir()}
    assert not (tmp_path / "~").exists()
    code, _, err = command("status", "~nobody-of-this-name/results")
    assert code == 2
    assert "no such user" in err


@pytest.mark.parametrize(
    "words", [("run", "demo", "--results", ""), ("status", ""), ("report", ""), ("fit", ""), ("export", "-o", "")]
)
def test_an_empty_path_is_not_this_folder(command, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert "an empty path; name a file or folder" in err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "words",
    [("run", "demo", "--jobs"), ("fit", "x.csv", "--bootstrap"), ("next", "x.csv", "--predict", "params=1", "--most"),
     ("generate", "r", "--prompt", "a", "--tokens"), ("generate", "r", "--prompt", "a", "--seed"),
     ("serve", "--port"), ("serve", "--max-batch"), ("serve", "--max-tokens")],
)  # fmt: skip
def test_a_fraction_is_not_rounded_to_a_whole_number(command, words: tuple[str, ...]) -> None:
    code, out, err = command(*words, "1.5")
    assert (code, out) == (2, "")
    assert err.startswith(f"scalebench {words[0]}: ")
    assert f"{words[-1]}: '1.5' is not a whole number (see scalebench {words[0]} --help)" in err
