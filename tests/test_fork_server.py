"""The fork server: its workers are what fresh processes would be, and end with it, with the driver, or when stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import SMALL, SOURCE_PATH, child_environment, has_ended

from scalebench import store
from scalebench.running import forked, processes
from scalebench.running.engines.base import worker_environment
from scalebench.running.forked import ForkedWorker, ForkServerError, start_worker
from scalebench.running.planning import load_study
from scalebench.running.sweep import execute, survey

# A server as it is, but for what is imported; its workers run ``program.py`` in their folder.
SERVER = """
import runpy, sys
from scalebench.running import fork_server, worker
fork_server.PRELOADED = ("numpy",)
worker.run_and_exit = lambda folder: runpy.run_path(folder + "/program.py", run_name="__main__") and 0
sys.exit(fork_server.main())
"""
FACTS = """
import json, os, random, sys, threading
import numpy as np
print(json.dumps({
    "random": [random.random(), np.random.rand()], "cwd": os.getcwd(), "arguments": sys.argv[1:],
    "stdin": sys.stdin.read(),
    "environment": dict(os.environ), "ids": [os.getpid(), os.getpgid(0), os.getsid(0)], "parent": os.getppid(),
    "tasks": len(os.listdir("/proc/self/task")), "path": sys.path,
    "open": sorted(map(int, os.listdir("/proc/self/fd"))),
    "handlers": [signal_ is __import__("signal").SIG_DFL for signal_ in map(__import__("signal").getsignal, (15, 17))],
}))
"""
SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
Begin = Callable[..., tuple[ForkedWorker, Path]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Start a worker of a light server that runs a program; return it and its folder."""
    monkeypatch.setattr(forked, "_SERVERS", [])
    monkeypatch.setattr(forked, "COMMAND", (sys.executable, "-c", SERVER))

    def start(program: str, **variables: str) -> tuple[ForkedWorker, Path]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "program.py").write_text(program)
        return start_worker(folder, {"PYTHONPATH": SOURCE_PATH, "PATH": os.environ["PATH"], **variables}), folder

    yield start
    forked.stop_servers()


def await_log(folder: Path) -> None:
    """Wait until the program has written to its log."""
    while not (folder / "stdout.log").exists() or not (folder / "stdout.log").read_text():
        time.sleep(0.01)


@pytest.mark.slow
def test_a_forked_worker_is_like_a_fresh_process(begin: Begin, monkeypatch, tmp_path_factory) -> None:
    first, one = begin(FACTS)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    second, two = begin(FACTS)
    assert [first.wait(10), second.wait(10)] == [0, 0]
    facts: list[dict[str, Any]] = [json.loads((folder / "stdout.log").read_text()) for folder in (one, two)]
    assert [fact["ids"] for fact in facts] == [[first.pid] * 3, [second.pid] * 3]
    assert facts[0]["parent"] == facts[1]["parent"] == first.server.process.pid
    assert all(a != b for a, b in zip(facts[0]["random"], facts[1]["random"], strict=True))
    assert [fact["cwd"] == str(Path.cwd()) for fact in facts] == [False, True]
    assert facts[1]["path"][0] == str(Path.cwd())
    for fact, folder in zip(facts, (one, two), strict=True):
        assert (fact["arguments"], fact["stdin"], fact["tasks"]) == ([str(folder)], "", 1)
        assert fact["handlers"] == [True, True]
        assert fact["environment"].keys() - {"LC_CTYPE"} == {"PYTHONPATH", "PATH"}
        assert fact["open"][:-1] == [0, 1, 2]  # the last one lists the folder
    assert first.server.threads == 1


@pytest.mark.slow
def test_each_worker_has_the_variables_of_its_request_and_one_server_serves_them(begin: Begin) -> None:
    first, _ = begin(SLEEP)
    second, _ = begin(SLEEP)
    assert first.server is second.server
    other, folder = begin(FACTS, OMP_NUM_THREADS="3")
    assert other.wait(10) == 0
    assert json.loads((folder / "stdout.log").read_text())["environment"]["OMP_NUM_THREADS"] == "3"
    assert other.server is not first.server  # variables are read when libraries are loaded
    assert (first.poll(), second.poll()) == (None, None)  # a server with workers stays
    for worker in (first, second):
        assert processes.stop(worker) == -signal.SIGTERM
    last, _ = begin("", OMP_NUM_THREADS="3")
    assert last.wait(10) == 0
    assert last.server is other.server
    assert has_ended(first.server.process.pid)


@pytest.mark.slow
def test_every_end_is_reported_as_it_was(begin: Begin) -> None:
    codes = {
        "raise SystemExit(7)": 7,
        "1 / 0": 1,
        "import os; os.kill(os.getpid(), 11)": -signal.SIGSEGV,
        "import os; os.kill(os.getpid(), 9)": -signal.SIGKILL,
        "": 0,
    }
    workers = {program: begin(program) for program in codes}
    assert {program: worker.wait(10) for program, (worker, _) in workers.items()} == codes
    assert "ZeroDivisionError" in (workers["1 / 0"][1] / "stderr.log").read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        begin(SLEEP)[0].wait(0.05)


@pytest.mark.slow
def test_stopping_a_worker_stops_its_group_and_no_other(begin: Begin) -> None:
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True)\n"
    (leader, folder), (other, _) = begin(program + SLEEP), begin(SLEEP)
    await_log(folder)
    child = int((folder / "stdout.log").read_text().split()[0])
    assert processes.stop(leader) == -signal.SIGTERM
    assert has_ended(child)
    assert other.poll() is None
    stubborn, folder = begin(STUBBORN)
    await_log(folder)
    assert processes.stop(stubborn, grace_s=0.2) == -signal.SIGKILL


@pytest.mark.slow
def test_workers_end_with_their_server_and_the_next_gets_another(begin: Begin, capsys) -> None:
    worker, folder = begin(STUBBORN)
    await_log(folder)
    worker.server.process.kill()
    assert worker.wait(10) == -signal.SIGKILL
    assert has_ended(worker.pid)
    following, _ = begin("raise SystemExit(3)")
    assert following.wait(10) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["the fork server ended: SIGKILL; starting another"]


def test_a_server_that_does_not_start_says_why(begin: Begin, monkeypatch) -> None:
    monkeypatch.setattr(forked, "COMMAND", (sys.executable, "-c", "raise ImportError('no torch here')"))
    with pytest.raises(ForkServerError, match="exit status 1: ImportError: no torch here"):
        begin("")


@pytest.mark.slow
def test_workers_end_with_the_driver(tmp_path: Path) -> None:
    """Of two workers one ignores SIGTERM; the driver is killed without a chance to stop them."""
    driver = f"""
import os, sys, time
from pathlib import Path
from scalebench.running import forked
forked.COMMAND = (sys.executable, "-c", {SERVER!r})
for name in ("a", "b"):
    print(forked.start_worker(Path(name), dict(os.environ)).pid, flush=True)
print(forked._SERVERS[0].process.pid, flush=True)
time.sleep(60)
"""
    for name, program in (("a", SLEEP), ("b", STUBBORN)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-c", driver], cwd=tmp_path, env=child_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(3)]
    await_log(tmp_path / "b")
    process.kill()
    process.communicate()
    assert has_ended(pids[0], 2)
    assert all(has_ended(pid, processes.GRACE_S + 5) for pid in pids)


def test_secrets_of_the_driver_are_not_in_a_workers_environment() -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": "s", "OPENAI_API_KEY": "s", "PATHS": "s", "WANDB_API_KEY": "s", "MY_TOKEN": "s"}
    needed = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1", "PYTHONPATH": "x", "HF_HOME": "/hf"}
    assert worker_environment(secret | needed) == needed


@pytest.mark.slow
def test_the_server_has_no_cuda_context_and_no_second_thread_and_imports_all_that_a_trial_needs(tmp_path: Path) -> None:
    program = """
import json, sys
from scalebench.running import fork_server
fork_server._preload()
import torch
maps = open("/proc/self/maps").read()
print(json.dumps({"threads": fork_server.threads_of_this_process(), "cuda": torch.cuda.is_initialized(),
    "driver": "libcuda.so" in maps, "loaded": sorted(sys.modules)}))
"""
    environment = child_environment(**forked.BEFORE_IMPORT)
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    facts = json.loads(done.stdout)
    assert (facts["threads"], facts["cuda"], facts["driver"]) == (1, False, False)
    assert {"torch._dynamo", "scalebench.workloads.training_run", "scalebench.families.gpt"} <= set(facts["loaded"])
    assert "torch._inductor.async_compile" not in facts["loaded"]  # it starts processes


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_a_worker_uses_the_threads_of_its_cores_whatever_the_server_was_started_with(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    path = tmp_path / "one.toml"
    path.write_text(SMALL)
    study = load_study(path, ["model.params=200", "train.seed=0"])
    (row,) = execute(survey(study, tmp_path / "r"), study, jobs=1)
    variables = store.read_json(Path(row["attempt_dir"]) / "environment.json")["environment_variables"]
    assert (row["status"], row["threads"], variables["OMP_NUM_THREADS"]) == ("ok", cores, str(cores))
    assert 0 < row["startup_time_s"] < row["wall_time_s"] < 5


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_trials_of_a_server_that_is_killed_are_killed_and_the_others_run(tmp_path: Path, capsys) -> None:
    path = tmp_path / "two.toml"
    path.write_text(SMALL)
    study = load_study(path, ["model.params=200", "train.steps=[10000000, 20]", "train.seed=0"])
    killed: list[int] = []

    def kill(running: Sequence[Path]) -> None:
        if not killed and running and (running[0] / "heartbeat.json").exists():
            killed.append(psutil.Process(store.read_json(running[0] / "placement.json")["pid"]).ppid())
            os.kill(killed[0], signal.SIGKILL)

    rows = {row["steps"]: row for row in execute(survey(study, tmp_path / "r"), study, jobs=1, tick=kill)}
    assert {steps: row["status"] for steps, row in rows.items()} == {10**7: "killed", 20: "ok"}
    assert "SIGKILL" in rows[10**7]["error_message"]
    assert "starting another" in capsys.readouterr().err
