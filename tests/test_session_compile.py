"""The GPU session's step "compile and baselines": limits, faults of the compiler, and what its commands are."""

from __future__ import annotations

import json
import re
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpu_session
import pandas as pd
import pytest
import session_compile
import session_measures
import session_steps
from session import RESERVE_S, ProgramFailedError, Session, Step, run_steps
from session_pool import Pool
from session_support import FakeClock, make_session

from scalebench.cli.app import app

BEGINNING_S = 45.0  # of the steps before: each has a limit of 30 or 45 s, and takes a few
# A worker like session_worker.py, that does to each function what its name says.
WORKER = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    name = job["function"].rpartition(":")[2]
    answer = {"status": "ok", "problem": None, "launched": [{"function": name}]}
    match name:
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "hang": time.sleep(600)
        case "fail": answer = {"status": "failed", "problem": "CompilationError: no such layout"}
        case "device": answer |= {"status": "failed", "problem": repr(os.environ["CUDA_VISIBLE_DEVICES"])}
        case "arch": answer |= {"status": "failed", "problem": f"sm_{job['capability']} {job['data']}"}
    print(json.dumps(answer), flush=True)
"""


def request_of(name: str, kind: str = "*bf16") -> dict[str, Any]:
    """A request to compile a function."""
    launched = {"pointers": {"x": kind}}
    return {"function": f"module:{name}", "data": "{}", "operation": "norm", "case": "1x1", "launched": launched}


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose workers are those above."""
    monkeypatch.setattr(session_compile, "Pool", partial(Pool, command=(sys.executable, "-c", WORKER)))
    monkeypatch.setattr(session_compile, "pack_cache", lambda _: "packed")
    return make_session(tmp_path)


def listing(monkeypatch: pytest.MonkeyPatch, *names: str, distinct: int = 10, unreached: tuple[str, ...] = ()) -> None:
    """Let the launches of the cases request these functions."""
    listed = {"distinct": distinct, "missing": [request_of(name) for name in names], "unreached": list(unreached)}
    monkeypatch.setattr(session_compile, "requests", lambda _: listed)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kernels_that_do_not_compile_are_failed_checks_and_the_others_go_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_compile, "ONE_S", 0.5)
    listing(monkeypatch, "good", "crash", "fail", "hang", "other")
    with pytest.raises(RuntimeError, match=r"2 of 5 compiled in \d s, 5 were in the cache, 3 failed"):
        session_compile.compile_kernels(session)
    outcomes = {name.split()[1]: (check["status"], check["problem"]) for name, check in session.checks.items()}
    assert {name: status for name, (status, _) in outcomes.items()} == {
        "crash": "crashed", "fail": "failed", "hang": "timeout",
    }  # fmt: skip
    assert "SIGSEGV" in outcomes["crash"][1]
    assert outcomes["fail"][1] == "CompilationError: no such layout"
    written = json.loads((session.out / "check.json").read_text())["checks"]
    assert written == session.checks  # a kill loses none of them
    assert not any("launched" in check for check in session.checks.values())  # nothing was launched
    assert "no such layout" in session.summary()
    assert not session.good


@pytest.mark.slow
def test_what_there_is_no_time_for_is_left_to_the_checks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    listing(monkeypatch, "good", "hang", "hang", "never")
    session.limit = session.clock() + 2.0
    begun = time.monotonic()
    line = session_compile.compile_kernels(session)
    assert time.monotonic() - begun < 6.0
    assert "1 of 4 compiled" in line
    assert "3 left to the checks" in line
    assert not session.checks  # they have not failed


@pytest.mark.slow
def test_workers_see_no_device_and_get_what_is_to_be_compiled(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    session.environment["CUDA_VISIBLE_DEVICES"] = "0"
    session.versions["capability"] = 100
    listing(monkeypatch, "device", "arch")
    with pytest.raises(RuntimeError, match="2 failed"):
        session_compile.compile_kernels(session)
    assert {check["problem"] for check in session.checks.values()} == {"''", "sm_100 {}"}


def test_a_full_cache_starts_no_process_and_configurations_without_a_case_are_named(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_compile, "Pool", None)
    monkeypatch.setattr(session_compile, "pack_cache", None)
    listing(monkeypatch, distinct=772)
    assert session_compile.compile_kernels(session) == "0 of 0 compiled in 0 s, 772 were in the cache"
    listing(monkeypatch, distinct=772, unreached=("forward fp16", "backward"))
    assert "2 configurations without a case, such as forward fp16" in session_compile.compile_kernels(session)


def test_kernels_of_bfloat16_come_first() -> None:
    requests = [request_of("a", "*fp16"), request_of("b"), request_of("c", "*fp32"), request_of("d", "*i64")]
    jobs = session_compile.compile_jobs(requests, 90)
    assert [job.priority for job in jobs] == [1, 0, 1, 0]
    assert len({job.name for job in session_compile.compile_jobs([requests[0]] * 3, 90)}) == 3


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "expected"), [(290.0, 50.0), (270.0, 37.0), (250.0, 20.0), (120.0, 20.0)])
def test_checks_and_tuning_keep_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: float
) -> None:
    clock = FakeClock()
    session = make_session(tmp_path, seconds, clock=clock)
    spent: dict[str, float] = {}

    def together(at: Session, *_: Any) -> str:
        spent["compile and baselines"] = at.left_s()
        clock.now += at.left_s()
        return ""

    def spend(name: str, at: Session) -> str:
        spent[name] = min(at.left_s(), BEGINNING_S if name == "setup" else 1e9)
        clock.now += spent[name]
        return ""

    monkeypatch.setattr(session_compile, "together", together)
    names = ("compile and baselines", "checks", "tuning")
    later = [step for step in session_steps.first() if step.name in names]
    assert tuple(step.name for step in later) == names  # in this order
    own = later[0]
    assert own.do is session_compile.compile_and_measure
    steps = [Step(step.name, partial(spend, step.name), step.least_s, step.most_s) for step in later[1:]]
    run_steps(session, [Step("setup", partial(spend, "setup")), own, *steps])
    assert spent["compile and baselines"] == pytest.approx(expected)
    if seconds >= 250:
        assert spent["checks"] == pytest.approx(130)
        left = seconds - RESERVE_S - BEGINNING_S - expected - 130
        assert spent["tuning"] == pytest.approx(min(50, left))
        assert left > 45


def test_a_fault_of_one_program_leaves_the_others_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, float]] = []

    def compare(_: Session, table: session_measures.Table, most_s: float) -> str:
        measured.append((table.name, most_s))
        if table.backward:
            raise RuntimeError("ended early: sdpa-cudnn crashed")
        return "21 lines"

    def compile_kernels(_: Session) -> str:
        raise ProgramFailedError("exit status 1: ImportError", "")

    monkeypatch.setattr(session_compile, "compare", compare)
    monkeypatch.setattr(session_compile, "compile_kernels", compile_kernels)
    monkeypatch.setattr(session_measures, "keep", lambda _: None)
    monkeypatch.setattr(session_measures, "APART_S", 0.0)
    session = make_session(tmp_path)
    run_steps(session, [
        Step("compile and baselines", session_compile.compile_and_measure), Step("checks", lambda _: "20 ok"),
    ])  # fmt: skip
    first, second = session.steps
    assert first["status"] == "failed"
    assert "kernels: failed: exit status 1: ImportError" in first["result"]
    assert "attention forward baselines: ok: 21 lines" in first["result"]
    assert "attention backward baselines: failed: ended early: sdpa-cudnn crashed" in first["result"]
    assert second["status"] == "ok"
    assert sorted(measured) == [("attention backward", 40.0), ("attention forward", 40.0)]


def test_the_baselines_are_flash_and_cudnn_at_the_shapes_of_the_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[tuple[str, ...], float]] = []

    def python(_: Session, *words: Any, most_s: float, **__: Any) -> str:
        commands.append((tuple(map(str, words)), most_s))
        return ""

    monkeypatch.setattr(Session, "python", python)
    session = make_session(tmp_path, seconds=300.0)
    session.device = "cuda"
    for table in session_compile.BASELINES:
        session_measures.compare(session, table, session_compile.MEASURING_S)
    for words, most_s in commands:
        app.parse_args(words[2:], exit_on_error=False, print_error=False)
        options = dict(pairwise(words))
        assert options["--providers"] == "sdpa-flash,sdpa-cudnn"
        assert float(options["--minutes"]) * 60 == pytest.approx(34.0)  # it ends itself before it is stopped
        assert most_s == 40.0
        shapes = [words[place + 1] for place, word in enumerate(words) if word == "--shapes"]
        assert sum("query_length=8192,key_length=8192,head_dimension=128" in shape for shape in shapes) == 2
    assert [("--backward" in words) for words, _ in commands] == [False, True]


def test_results_are_copied_to_out_while_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[float] = []
    monkeypatch.setattr(session_measures, "keep", lambda _: copies.append(time.monotonic()))

    def program() -> str:
        until = time.monotonic() + 10
        while len(copies) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        return f"{len(copies)} copies"

    assert session_measures.together(make_session(tmp_path), {"one": program}, 0.02) == "one: ok: 3 copies"


# --- what the checks say of it ---------------------------------------------------------------------------------------


def test_the_checks_report_how_many_kernels_had_been_compiled() -> None:
    from session_pool import Job

    jobs = [Job(name, {"kind": kind}) for name, kind in (("a", "case"), ("b", "case"), ("c", "candidate"))]
    hit, miss = {"function": "norm.forward", "cached": True}, {"function": "norm.backward", "cached": False}
    launched: dict[str, Any] = {"a": [hit, hit], "b": [hit, miss], "c": [miss]}
    results = [{"name": name, "launched": entries} for name, entries in launched.items()]
    (text,) = session_steps.loaded_kernels(jobs, results)
    assert text == "3 of 4 kernels of the cases were compiled before (not: 1 of norm.backward, …)"
    assert session_steps.loaded_kernels(jobs, results[:1]) == ["2 of 2 kernels of the cases were compiled before"]
    assert session_steps.loaded_kernels(jobs, [{"name": "a", "status": "crashed"}]) == []


# --- on a CPU --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_step_is_rehearsed_on_a_cpu_and_the_next_session_finds_its_cache(tmp_path: Path) -> None:
    session = make_session(tmp_path, seconds=400.0)
    session.operations = ("rotary",)
    run_steps(session, gpu_session.chosen(session_steps.first(), "compile and baselines,cache", ""))
    assert session.good, session.summary()
    assert "2 of 2 compiled" in session.summary()
    rows = pd.read_parquet(session.out / "compare.parquet")
    assert sorted(rows["backward"]) == [False, True]
    assert (rows["copy_ceiling_bytes_per_s"] > 0).all()
    assert rows["ceiling_source"].str.startswith("measured on random numbers").all()

    previous = tmp_path / "carried" / "previous"
    previous.mkdir(parents=True)
    (session.out / "cache.tar.xz").replace(previous / "cache.tar.xz")
    (session.work / "triton").rename(tmp_path / "gone")
    session = make_session(tmp_path, seconds=400.0, carried=tmp_path / "carried")
    session.operations = ("rotary",)
    assert "compiled kernels" in session_steps.setup(session)
    assert re.fullmatch(r"0 of 0 compiled in \d+ s, 2 were in the cache", session_compile.compile_kernels(session))
