"""What several test files share: small studies, and a way to run the command line in a process of its own."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Two worker processes of pytest on two cores: one thread each, before torch and numpy count the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The server of drivers is forked from this process: what a fork server has before it loads libraries (``forked.py``).
os.environ["OMP_WAIT_POLICY"] = "passive"
# Inductor compiles without its pool of threads: a process forked after a test has compiled lacks them, and would wait
# for them forever.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
# Tests run beside each other: their trials' times are used although others run on the cores (test_contention.py).
os.environ.setdefault("SCALEBENCH_OTHERS_LIMIT", "inf")
# No test cuts the power, which is what files are synced for.
os.fsync = lambda _: None
# Tests look for sentences; those of tests/test_output.py are about lines that are broken to fit.
os.environ["COLUMNS"] = "240"
# Importing everything makes a million objects, none of which is garbage: looking for some would take a third of the
# time. After the collection of tests they are left out of every search for garbage, also of those that tests ask for.
if gc.isenabled():
    gc.disable()

import jsonschema
import pytest
import quick_commands
from browser_support import browser  # noqa: F401 - a fixture
from drivers import Drivers
from refits_support import FEW, refits_of
from support import FINISHED, SMALL, SOURCE_PATH, child_environment, shared_folder

from scalebench.cli.app import main
from scalebench.running import processes

# Triton decides at import whether kernels are compiled or interpreted, so the two kinds of test never share a process:
# `make test` runs pytest twice, the second time with TRITON_INTERPRET=1 and the kernel files alone.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED:
    quick_commands.speed_up()
if "PYTEST_XDIST_WORKER" in os.environ:
    # Registered first, so called last: the end of a worker process, which would take down all modules one by one.
    atexit.register(os._exit, 0)
STARTED_DRIVERS = pytest.StashKey[Drivers]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make Triton's interpreter quick before anything is collected, where tests run: not in the controller of xdist."""
    for plugin in session.config.pluginmanager.get_plugins():
        if hasattr(plugin, "sendevent"):  # this is a worker process
            _send_less(plugin, session.config)
    if INTERPRETED and not session.config.pluginmanager.has_plugin("dsession"):
        from quick_interpreter import speed_up

        speed_up()


def _send_less(worker: Any, config: pytest.Config) -> None:
    """Let a worker of xdist send two messages on a test that passes, not six, each of which costs both processes time.

    Nothing is printed of a test's start and end, nor of a set-up or tear-down without an error, except their times
    where the command line asks for them.
    """
    if config.getoption("durations") is not None or config.getoption("xmlpath") is not None:
        return
    send = worker.sendevent

    def send_what_is_printed(name: str, **content: Any) -> None:
        report = content.get("data", {})
        silent = report.get("outcome") == "passed" and report.get("when") in ("setup", "teardown")
        if name not in ("logstart", "logfinish") and not silent:
            send(name, **content)

    worker.sendevent = send_what_is_printed


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect test_kernel_*.py under the interpreter only, and nothing else there."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    return True if collection_path.name.startswith("test_kernel_") != INTERPRETED else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Search for garbage from here on, but only among what tests make; fork the server of drivers before any test."""
    gc.freeze()
    gc.set_threshold(10_000)  # a fortieth of the time went into searches after every 700 objects
    if "torch" in sys.modules:
        _seed_without_stacks()
    session.config.stash[STARTED_DRIVERS] = drivers = Drivers()
    if any("drivers" in getattr(item, "fixturenames", ()) for item in session.items):
        drivers.fork_server()
    gc.enable()


def _seed_without_stacks() -> None:
    """Let ``torch.manual_seed`` write down no stack for each device that is not there: a millisecond below pytest's."""
    import torch

    for device in (torch.cuda, torch.xpu, torch.mtia):
        device.traceback = types.SimpleNamespace(format_stack=list)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Search for garbage once more; at its end pytest does so five times, for errors that no test sees."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Say which half of the tests this run holds."""
    return "kernels under the interpreter" if INTERPRETED else "without test_kernel_*.py (set TRITON_INTERPRET=1)"


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """A copy of what the test file's own fixture ``base`` prepared, to write to."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the packages when they are not installed."""
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)


@pytest.fixture
def small_study(tmp_path: Path) -> Path:
    """The path of a study of four trials that takes seconds."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def drivers(pytestconfig: pytest.Config) -> Iterator[Drivers]:
    """Start the command line in processes that are forked, without the seconds of importing."""
    started = pytestconfig.stash[STARTED_DRIVERS]
    yield started
    started.stop()


@pytest.fixture
def forked_trials(drivers: Drivers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the fork servers of this process, too, which saves their imports."""
    instead = types.SimpleNamespace(**vars(processes) | {"start": drivers.start_server})
    monkeypatch.setattr("scalebench.running.forked.processes", instead)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, drivers: Drivers) -> Path:
    """A results folder, to read only: the small study, run with the command; 2 trials ok, 2 unsupported."""

    def fill(folder: Path) -> None:
        (folder / "small.toml").write_text(SMALL)
        driver = drivers.start(folder, ["run", *FINISHED, "--json"])
        assert driver.wait(300) == 1, driver.err
        (folder / "events.jsonl").write_text(driver.out)

    return shared_folder(tmp_path_factory, "finished", fill) / "results"


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, to read only: the steps of the synthetic study of report_support, and its page as index.html."""
    from report_support import synthetic

    from scalebench.reporting import render

    def fill(folder: Path) -> None:
        with refits_of(FEW):
            (folder / "index.html").write_text(render(synthetic(folder)))

    return shared_folder(tmp_path_factory, "synthetic", fill)


@pytest.fixture
def few_refits() -> Iterator[None]:
    """Intervals from few refits, not from 1,000: for tests that assert nothing about where intervals end."""
    with refits_of(FEW):
        yield


@pytest.fixture
def scalebench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a fresh process, in an empty folder."""

    def command(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scalebench.cli.app", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env=child_environment(),
        )

    return command


@cache
def validator_of(command: str) -> jsonschema.Draft202012Validator:
    """Return the validator of what ``--json`` of a command prints."""
    from scalebench.cli.documents import output_schema

    return jsonschema.Draft202012Validator(output_schema(command))


def check_output(command: str, out: str) -> None:
    """Check what ``--json`` of a command printed against its schema; an error leaves standard output empty."""
    documents = out.splitlines() if command == "run" else [out] if out else []
    for document in documents:
        validator_of(command).validate(json.loads(document))


@pytest.fixture
def command(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process, in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        if "--json" in arguments:
            check_output(str(arguments[0]), out)
        return int(end.value.code or 0), out, err

    return run
