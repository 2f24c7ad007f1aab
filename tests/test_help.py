"""Help texts: every command in its group, every option described, and every example runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from command_support import README, planted, readme_tables, write_study
from comparison_support import forked_processes  # noqa: F401 - a fixture
from support import child_environment

from scalebench.cli.app import COMMANDS, app

EXAMPLES = {name: example for group in COMMANDS.values() for name, (_, example) in group.items()}
TORCH = ("demo", "run", "compare", "generate", "serve", "doctor")  # examples that train, measure or import torch
# What makes two of them a matter of a second: one trial of fourteen, one shape.
SMALLER = {
    "run": ("--set", "model.params=10000", "--set", "train.seed=0"),
    "compare": ("--shapes", "kind=rms,rows=64,width=64,residual=true,dtype=float32"),
}
DROP = "drop"  # its example names a trial without a result


def readme_commands() -> list[str]:
    """The lines of the README's list of commands, without comments."""
    (block,) = re.findall(r"## Commands\n\n```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line.partition("  #")[0].partition(" # ")[0].strip() for line in block.splitlines()]


def marked(lines: Iterable[str]) -> list[Any]:
    """Mark as slow those of some command lines that take a third of a second and more."""
    slow = ("run", "report")
    return [
        pytest.param(line, marks=pytest.mark.slow if line.removeprefix("scalebench ").split()[0] in slow else ())
        for line in lines
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README gives: its tables, results of a study, a fit."""
    folder = tmp_path_factory.mktemp("given")
    for name, text in readme_tables().items():
        (folder / name).write_text(text)
    for name in ("results/demo", "mine/demo", "old-results", "new-results"):
        write_study(folder / name, planted())
    return folder


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """A folder to write to with the same content; what is in its folders is only read."""
    for path in base.iterdir():
        shutil.copy(path, tmp_path) if path.is_file() else (tmp_path / path.name).symlink_to(path)
    return tmp_path


def runnable(line: str, folder: Path) -> list[str]:
    """The words of a command, with the id of a trial that exists where an example has one of its own."""
    words = shlex.split(line)
    trial = min(path.name for path in (folder / "results" / "demo" / "trials").iterdir())
    return [trial if word == "3f2a" else word for word in words if word != "scalebench"]


def test_every_command_is_in_a_group_with_an_example(command) -> None:
    _, out, _ = command("--help")
    headings = re.findall(r"╭─ (.*?) ─", out)
    assert [*COMMANDS] == [heading for heading in headings if heading in COMMANDS]
    for name, example in EXAMPLES.items():
        _, out, _ = command(*name.split(), "--help")
        assert f"Example: scalebench {example}" in " ".join(out.split()), name


def test_every_option_is_described() -> None:
    missing = []
    for name in EXAMPLES:
        target = app
        for part in name.split():
            target = target[part]
        missing += [
            (name, argument.names)
            for argument in target.assemble_argument_collection(parse_docstring=True)
            if argument.names != ("*",) and not argument.parameter.help
        ]
    assert missing == []


def test_positional_arguments_are_named_in_the_usage(command) -> None:
    assert "scalebench report [OPTIONS] [RESULTS...]" in command("report", "--help")[1]
    assert "scalebench serve [OPTIONS] [TRIAL]" in command("serve", "--help")[1]
    assert "scalebench diff [OPTIONS] OLD NEW" in command("diff", "--help")[1]
    assert "scalebench new study [OPTIONS] FAMILY" in command("new", "study", "--help")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    script = app.generate_completion(prog_name="scalebench", shell=shell)
    assert all(
        word in script for word in ("plan", "diff", "optimal", "--bootstrap" if shell != "fish" else "bootstrap")
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_values_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "scalebench").write_text(f'#!/bin/sh\nexec {sys.executable} -m scalebench "$@"\n')
    (tmp_path / "scalebench").chmod(0o755)
    script = """
        complete_line() {
            read -ra COMP_WORDS <<< "$1"; [[ "$1" == *" " ]] && COMP_WORDS+=("")
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            _scalebench scalebench "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "$1 => ${COMPREPLY[*]}"
        }
    """
    expected = {
        "scalebench pl": "plan", "scalebench new ": "study", "scalebench fit p.csv --boo": "--bootstrap",
        "scalebench run gpt --order ch": "cheapest", "scalebench plan mi": "mine.toml",
        "scalebench run gpu-s": "gpu-speed", "scalebench export --to ": "tensorboard wandb-offline mlflow",
    }  # fmt: skip
    lines = [app.generate_completion(prog_name="scalebench", shell="bash"), script]
    lines += [f'complete_line "{line}"' for line in expected]
    environment = child_environment()
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash"], input="\n".join(lines), cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{line} => {words}" for line, words in expected.items()]


def test_json_is_a_flag_everywhere() -> None:
    for name in EXAMPLES:
        target = app
        for part in name.split():
            target = target[part]
        for argument in target.assemble_argument_collection(parse_docstring=True):
            if "--json" in argument.names:
                assert argument.hint is bool, name


@pytest.mark.parametrize("name", marked(name for name in EXAMPLES if name not in (*TORCH, DROP)))
@pytest.mark.usefixtures("few_refits")
def test_the_example_of_a_command_runs(command, copied: Path, name: str) -> None:
    if name in ("predict", "next"):
        assert command(*runnable(EXAMPLES["fit"], copied))[0] == 0
    code, _, err = command(*runnable(EXAMPLES[name], copied))
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes", "forked_trials")
@pytest.mark.parametrize("name", ["run", "compare", "doctor"])
def test_the_example_of_a_command_that_measures_runs(command, tmp_path: Path, name: str) -> None:
    code, _, err = command(*shlex.split(EXAMPLES[name]), *SMALLER.get(name, ()))
    assert code == 0, err


def test_the_examples_that_need_a_trained_model_are_read(copied: Path) -> None:
    """The demo takes minutes (tests/test_demo.py checks what it made), and generate and serve need weights."""
    for name in ("demo", "generate", "serve", DROP):
        app.parse_args(runnable(EXAMPLES[name], copied), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("line", marked(readme_commands()))
@pytest.mark.usefixtures("few_refits")
def test_the_commands_of_the_readme_work_in_a_folder_with_what_it_gives(
    command, copied: Path, line: str, request: pytest.FixtureRequest
) -> None:
    words = runnable(line, copied)
    if words[0] == "run":
        request.getfixturevalue("forked_trials")
    if words[0] in ("demo", "compare", "generate", "serve", "doctor"):  # minutes, or weights
        app.parse_args(words, exit_on_error=False, print_error=False)
        return
    if words[0] == "next":
        assert command("fit", "points.csv", "--law", "chinchilla", "-o", "fit.json")[0] == 0
    if words[0] in ("plan", "run"):
        assert command("new", "study", "mlp", "-o", "mine.toml")[0] == 0
        words += ["--set", "train.steps=2", "--set", "model.params=1000"] if words[0] == "run" else []
        (copied / "results").unlink()
    code, _, err = command(*words)
    assert code == 0, err
