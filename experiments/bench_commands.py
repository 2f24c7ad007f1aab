"""How long a user waits: help, and planning ten thousand trials. bench_store.py has the commands on results."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from support import SOURCE_PATH

COMMANDS = (
    *("list", "list --columns", "plan demo", "plan nothere", "run nothere", "compare nothere", "status none"),
    *("fit none.csv", "predict none --params 1e6", "tune none.csv", "diff old new", "report none", "show 3f"),
)
PLAN = """
schema = 1
name = "large"
[model]
family = "gpt"
params = { geom = [2e3, 1e9], points = 100 }
[train]
seed = %s
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)

    def run(*arguments: str | Path, check: bool = True) -> None:
        line = [sys.executable, "-m", "scalebench.cli.app", *map(str, arguments)]
        errors = None if check else subprocess.DEVNULL
        subprocess.run(line, cwd=tmp_path, check=check, stdout=subprocess.DEVNULL, stderr=errors)

    return run


def test_help(benchmark, command) -> None:
    benchmark.pedantic(lambda: command("--help"), rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_command_without_torch(benchmark, command, arguments: str) -> None:
    """Goal: at most 1 s, errors included; `--help` at most 0.3 s. ``cpu_s`` is the median time on a core.

    tests/test_architecture.py has what these may not import.
    """
    cpu_s = []

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command(*arguments.split(), check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info["cpu_s"] = median(cpu_s)


def test_plan_of_ten_thousand_trials(benchmark, command, tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text(PLAN % list(range(100)))
    benchmark.pedantic(lambda: command("plan", "large.toml"), rounds=3, warmup_rounds=1)
