"""The shape of the distribution: what must be there, and what must never be."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from support import REPOSITORY, child_environment

import scalebench
from scalebench.cli import app
from scalebench.cli import entry as entry_module

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_kernels_is_a_folder_and_never_a_package() -> None:
    assert not (REPOSITORY / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("package", PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
def test_both_packages_are_typed(package: str) -> None:
    assert (REPOSITORY / package / "py.typed").exists()
    assert (REPOSITORY / package / "__init__.py").exists()


def test_the_project_cannot_be_uploaded_by_mistake() -> None:
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_the_version_is_said_once_and_the_same() -> None:
    assert PROJECT["project"]["version"] == scalebench.__version__
    try:
        installed = version("scalebench")
    except ModuleNotFoundError:
        pytest.skip("not installed: running from source")
    assert installed == scalebench.__version__
    assert any(entry.load() in (app.main, entry_module.main) for entry in entry_points(name="scalebench"))


def test_the_command_begins_in_the_module_that_imports_nothing_else() -> None:
    assert PROJECT["project"]["scripts"] == {"scalebench": "scalebench.cli.entry:main"}
    code = (
        "import os, signal, sys; before = {*sys.modules}; import scalebench.cli.entry; print(*{*sys.modules} - before)"
    )
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"__future__", "scalebench", "scalebench.cli", "scalebench.cli.entry"}


def test_every_dependency_is_pinned_by_the_constraints() -> None:
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    needed = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    assert {re.split("[><=; ]", name)[0].lower() for name in needed} <= pinned


def test_the_public_names_are_functions_whatever_was_imported_before() -> None:
    import scalebench.reporting
    import scalebench.running.planning
    import scalebench.running.sweep

    assert all(callable(getattr(scalebench, name)) for name in scalebench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        scalebench.absent  # noqa: B018


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_the_python_example_of_the_readme_runs(small_study: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """As printed, but for the study: the one it names takes minutes."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (example,) = (text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "load_study" in text)
    monkeypatch.chdir(tmp_path)
    text = small_study.read_text().replace("[200, 800]", "[200, 400, 800, 1600]").replace("seed = [0, 1]", "seed = 0")
    small_study.write_text(text)
    example = example.replace('"mlp"', repr(str(small_study))).replace("results/mlp", "results/small")
    exec(example, {})
    assert "'alpha'" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 50_000


def test_the_study_of_the_readme_is_valid(tmp_path: Path) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    texts = [text for text in re.findall(r"```toml\n(.*?)```", readme, re.DOTALL) if "[from]" not in text]
    (example,) = (text for text in texts if "[sample]" not in text)
    (sample,) = (text for text in texts if "[sample]" in text)
    (tmp_path / "story.txt").write_text("".join(f"line {i} of a story that goes on\n" for i in range(9000)))
    path = tmp_path / "study.toml"
    path.write_text(example.replace("path/to/files", str(tmp_path / "story.txt")))
    from scalebench.running.planning import load_study, plan

    assert len(plan(load_study(path))) == 5 * 3 * 2
    path.write_text(path.read_text().replace("learning_rate = [0.003, 0.01, 0.03] ", "") + sample)
    assert len(plan(load_study(path, ["fit.best_over=[learning_rate]"]))) == 5 * 16 * 2
