"""The GPU session, rehearsed without a GPU: steps, deadlines, workers that crash, hang and run out of memory, kills."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_session
import pytest
import session_measures
import session_steps
from session import Session, Step, run_steps
from session_pool import Job, Pool
from session_support import FakeClock, make_session
from support import REPOSITORY, child_environment

from scalebench.cli.app import app

TOOLS = REPOSITORY / "kernels" / "tools"
FILES = {
    "summary.md", "check.json", "tune.json", "compare.parquet", "train.parquet", "results.tar.gz", "log.txt",
    "cache.tar.xz",
}  # fmt: skip

# A worker like session_worker.py, whose jobs do what they are told.
WORKER = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    match job["do"]:
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "hang": time.sleep(600)
        case "leave": sys.exit(3)
        case "lose": print(json.dumps({"status": "failed", "problem": "device lost", "lost": True}), flush=True)
        case "sleep": time.sleep(job["seconds"]); print(json.dumps({"status": "ok", "pid": os.getpid()}), flush=True)
        case _: print(json.dumps({"status": "ok", "pid": os.getpid()}), flush=True)
"""


def make_pool(tmp_path: Path, workers: int = 1, seconds: float = 30.0, budget: float = 10.0) -> tuple[Pool, list[Any]]:
    """A pool of the workers above, and the list that gets its results."""
    results: list[Any] = []
    pool = Pool(
        workers, dict(os.environ), time.monotonic() + seconds, budget, tmp_path / "worker.log", results.append,
        (sys.executable, "-c", WORKER),
    )  # fmt: skip
    return pool, results


def job(name: str, do: str, priority: int = 1, memory: float = 1.0, timeout: float = 10.0, **fields: Any) -> Job:
    """A job for such a worker."""
    return Job(name, {"do": do} | fields, priority, memory, timeout)


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_is_started_again_after_every_kind_of_fault_and_the_others_go_on(tmp_path: Path) -> None:
    pool, _ = make_pool(tmp_path)
    jobs = [
        job("one", "work"), job("two", "work"), job("crash", "crash"), job("after", "work"), job("leave", "leave"),
        job("hang", "hang", timeout=0.5), job("lose", "lose"), job("last", "work"),
    ]  # fmt: skip
    results = {row["name"]: row for row in pool.run(jobs)}
    assert {name: row["status"] for name, row in results.items()} == {
        "one": "ok", "two": "ok", "crash": "crashed", "after": "ok", "leave": "crashed", "hang": "timeout",
        "lose": "failed", "last": "ok",
    }  # fmt: skip
    assert "SIGSEGV" in results["crash"]["problem"]
    assert "exit status 3" in results["leave"]["problem"]
    assert results["one"]["pid"] == results["two"]["pid"]  # long-lived
    assert len({results[name]["pid"] for name in ("one", "after", "last")}) == 3


@pytest.mark.slow
def test_urgent_jobs_come_first_and_what_does_not_fit_is_not_run(tmp_path: Path) -> None:
    pool, results = make_pool(tmp_path, seconds=2.0)
    pool.run([job("later", "work", priority=3), job("long", "sleep", priority=2, seconds=60), job("first", "work", 0)])
    assert [row["name"] for row in results] == ["first", "long", "later"]
    assert [row["status"] for row in results] == ["ok", "not run", "not run"]


@pytest.mark.slow
def test_jobs_that_need_much_memory_do_not_run_together(tmp_path: Path) -> None:
    pool, _ = make_pool(tmp_path, workers=2, budget=10.0)
    begun = time.monotonic()
    rows = pool.run([job(f"large {i}", "sleep", memory=6.0, seconds=0.7) for i in range(2)])
    assert time.monotonic() - begun > 1.4
    assert [row["status"] for row in rows] == ["ok", "ok"]


@pytest.mark.slow
def test_a_worker_that_is_not_ready_at_the_deadline_has_not_failed(tmp_path: Path) -> None:
    pool, _ = make_pool(tmp_path, seconds=0.5)
    pool.command = (sys.executable, "-c", "import time; time.sleep(60)")
    assert [row["status"] for row in pool.run([job("one", "work"), job("two", "work")])] == ["not run", "not run"]
    pool, _ = make_pool(tmp_path)
    pool.command = (sys.executable, "-c", "raise SystemExit(5)")
    (row,) = pool.run([job("one", "work")])
    assert row["status"] == "crashed"
    assert "the worker did not start: exit status 5" in row["problem"]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_steps_fail_alone_and_are_left_out_when_too_little_time_is_left(tmp_path: Path) -> None:
    clock = FakeClock()
    session = make_session(tmp_path, seconds=100.0, clock=clock)

    def spend(seconds: float) -> Any:
        def do(at: Session) -> str:
            clock.now += seconds
            return f"{at.left_s():.0f} left"

        return do

    def broken(_: Session) -> str:
        raise ValueError("out of memory, for example")

    run_steps(session, [
        Step("one", spend(30), most_s=50), Step("broken", broken), Step("two", spend(50)), Step("three", spend(1), 13),
        Step("four", spend(1)),
    ])  # fmt: skip
    assert [(row["name"], row["status"]) for row in session.steps] == [
        ("one", "ok"), ("broken", "failed"), ("two", "ok"), ("three", "not run"), ("four", "ok"),
    ]  # fmt: skip
    assert session.steps[0]["result"] == "20 left"
    assert "out of memory" in (session.out / "summary.md").read_text()
    assert not session.good


def test_a_session_is_good_when_everything_ended_well_was_right_and_was_launched(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    session.steps = [{"name": "a", "status": "ok", "seconds": 1.0, "result": ""}]
    session.checks = {"case": {"status": "ok"}, "other": {"status": "unavailable"}}
    session.coverage = {"shipped": 2, "launched": 2, "missing": []}
    assert session.good
    session.coverage = {"shipped": 2, "launched": 1, "missing": ["attention_forward"]}
    assert not session.good
    session.coverage = {}
    session.checks["case"] = {"status": "failed", "problem": "y: error 1 > 0.1"}
    assert not session.good
    assert "y: error 1 > 0.1" in session.summary()


@pytest.mark.slow
def test_a_program_is_stopped_with_its_children_when_the_time_of_its_step_is_over(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    spawns = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(RuntimeError, match="stopped after its time"):
        session.python("-c", spawns, most_s=1.0)
    assert "begun" in (session.out / "log.txt").read_text()
    time.sleep(3)
    assert not mark.exists()
    with pytest.raises(RuntimeError, match="exit status 7: the reason"):
        session.python("-c", "print('the reason'); raise SystemExit(7)")
    assert "the reason" in (session.out / "log.txt").read_text()


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from session import Session, Step, run_steps
session = Session.begin(phase="first", out=Path({out!r}), work=Path({work!r}), carried=None, workers=1, device="cpu",
                        deadline=time.monotonic() + 60)
def do(at):
    name = f"check {{len(at.steps)}}"
    at.checks[name] = {{"status": "ok"}}
    print(name, flush=True)
    time.sleep(0.05)
    return "x" * 100_000
run_steps(session, [Step(f"step {{i}}", do) for i in range(200)])
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_kill_at_any_time_leaves_what_was_found(tmp_path: Path, after: int) -> None:
    out = tmp_path / "out"
    program = KILLED.format(paths=[str(TOOLS)], out=str(out), work=str(tmp_path / "work"))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = 0
        while lines < after:
            lines += process.stdout.readline().startswith("check")
        process.send_signal(signal.SIGKILL)
    checks = json.loads((out / "check.json").read_text())["checks"] if after > 1 else {}
    assert len(checks) >= after - 1
    assert not after > 1 or "| step 0 | ok |" in (out / "summary.md").read_text()


KILLED_WHILE_REPLACING = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import session_measures, session_steps
from session import Session
session = Session.begin(phase="first", out=Path({out!r}), work=Path({work!r}), carried=None, workers=1, device="cpu",
                        deadline=time.monotonic() + 60)
(session.work / "triton").mkdir()
(session.work / "triton" / "kernel.cubin").write_text("machine code")
session.python = lambda *words, **_: [Path(word).write_text("new") for word in words[-2:]]  # the export of tables
rename = Path.replace
def replace(path, target):
    if target == session.out / {name!r}:
        assert path.stat().st_size and target.read_text() == "old"
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.replace = replace
session.write()
session_measures.keep(session)
session_steps.pack_cache(session)
"""


@pytest.mark.parametrize("name", sorted(FILES - {"log.txt"}))
def test_a_kill_while_a_file_is_replaced_leaves_the_old_one_and_no_other(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for other in FILES:
        (out / other).write_text("old")
    program = KILLED_WHILE_REPLACING.format(
        paths=[str(TOOLS), str(REPOSITORY)], out=str(out), work=str(tmp_path / "work"), name=name
    )
    done = subprocess.run([sys.executable, "-c", program], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / name).read_text() == "old"


def test_files_are_written_outside_of_out_where_they_can_be_renamed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    session = make_session(tmp_path)
    session.say("kept")
    assert session.staging == work / "staging"
    own, rename = [work], Path.replace

    def replace(path: Path, target: Path) -> Path:
        if any(path.is_relative_to(folder) for folder in own):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert make_session(tmp_path).staging == tmp_path / ".out-staging"  # the scratch folder is on another file system
    own.append(tmp_path / ".out-staging")
    session = make_session(tmp_path)
    assert session.staging == out  # so is everything outside of OUT
    session.write()
    assert {path.name for path in out.iterdir()} == {"log.txt", "summary.md", "check.json", "tune.json"}
    assert "kept" in (out / "log.txt").read_text()


def test_a_file_that_could_not_be_written_anew_stays_as_it_was(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    (session.out / "train.parquet").write_text("old")
    with pytest.raises(ZeroDivisionError), session.replacing("train.parquet") as path:
        path.write_text("half of the ne") / 0
    with session.replacing("train.parquet") as path:
        assert not path.exists()  # and nothing is written
    assert (session.out / "train.parquet").read_text() == "old"
    assert not list(session.staging.iterdir())


# --- what the phases do ----------------------------------------------------------------------------------------------


def test_steps_can_be_chosen_and_their_limits_shortened() -> None:
    steps = gpu_session.PHASES["second"]()
    few = gpu_session.chosen(steps, "setup,backward tables,law", "law=60,training=80")
    assert [step.name for step in few] == ["setup", "backward tables", "law"]
    assert few[-1].most_s == 60
    assert few[0] == steps[0]
    assert gpu_session.chosen(steps, "", "") == list(steps)
    with pytest.raises(SystemExit, match="no step profile; the steps: setup, "):
        gpu_session.chosen(steps, "profile", "")


@pytest.mark.slow
@pytest.mark.parametrize(("device", "count"), [("cuda", 12), ("cpu", 10)])
def test_every_measurement_is_a_command_that_the_product_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, count: int
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(Session, "python", lambda self, *words, **_: commands.append(tuple(map(str, words))) or "")
    monkeypatch.setattr(session_measures, "keep", lambda _: None)
    session = make_session(tmp_path)
    session.device = device
    for step in session_measures.measuring_steps():
        step.do(session)
    assert len(commands) == count
    for words in commands:
        if words[0].endswith("profile_step.py"):
            continue
        assert words[:2] == ("-m", "scalebench.cli.app")
        app.parse_args(words[2:], exit_on_error=False, print_error=False)


def test_all_checks_have_names_of_their_own_and_goals_come_early() -> None:
    from session_jobs import check_jobs

    jobs = check_jobs("cuda", ("attention", "optimizer"))
    assert len({job.name for job in jobs}) == len(jobs) > 60
    goals = [job for job in jobs if "T8192" in job.name]
    assert goals
    assert all(job.priority <= 1 and job.memory_bytes > 1e10 for job in goals)


def test_the_first_phase_compares_the_losses_of_every_way_over_200_steps_and_looks_for_waits() -> None:
    from session_jobs import training_jobs

    from scalebench.workloads.agreement import WAYS

    known = {f"{implementation}:{graph}" for implementation, graph in WAYS}
    ways = {few: [job.what["command"][-1] for job in training_jobs("cuda", few)] for few in (False, True)}
    assert set(ways[False]) == known
    assert set(ways[True]) == {way for way in known if not way.endswith(":model")}  # they take too long there
    for job in training_jobs("cuda", few=False):
        command = job.what["command"]
        assert command[command.index("--steps") + 1] == "200"
        assert "--unwaiting" in command


def test_the_first_jobs_look_for_a_fast_and_exact_sum_of_weights_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    import check_case
    from session_jobs import check_jobs
    from session_worker import answer

    for device in ("cuda", "cpu"):
        (sums,) = (job for job in check_jobs(device, ("cross_entropy", "norm")) if job.what["kind"] == "sums")
        assert sums.priority == 0
    result = answer(sums.what, [])
    assert result["status"] == "ok"  # on a CPU, which has no such product
    assert result["information"] == [f"sums of {name} products: float32 copies" for name in ("bfloat16", "float16")]
    paths = iter(("addmm", "float32 copies"))
    monkeypatch.setattr(check_case, "weight_gradient_path", lambda *_: next(paths))
    result = answer({"kind": "sums", "device": "cuda"}, [])
    assert result["status"] == "failed"
    assert result["problem"].startswith("sums of float16 products: no product of 16-bit matrices")


def test_a_rehearsal_takes_few_steps_of_every_optimizer() -> None:
    from session_jobs import check_jobs

    jobs = {device: check_jobs(device, ("optimizer",)) for device in ("cuda", "cpu")}
    steps = {device: [job.what["steps"] for job in of if job.what["kind"] == "steps"] for device, of in jobs.items()}
    assert steps == {"cuda": [1000] * 10, "cpu": [20] * 10}


def test_a_case_that_was_right_is_not_checked_again_by_the_same_source(tmp_path: Path) -> None:
    from session_jobs import check_jobs, source_sha256

    previous = tmp_path / "carried" / "previous"
    previous.mkdir(parents=True)
    name, source = "attention: B1 H2 T1 D16 fp32 causal", source_sha256("attention")
    rows = {
        name: {"status": "ok", "source": source},
        "attention: wrong": {"status": "failed", "source": source},
        "attention: of other code": {"status": "ok", "source": "0123456789abcdef"},
        "candidate: forward D64": {"status": "ok", "source": ""},
        "AdamW, 1000 steps, float32": {"status": "ok", "source": ""},
    }
    (previous / "check.json").write_text(json.dumps({"checks": rows}))
    session = make_session(tmp_path, carried=tmp_path / "carried")
    session.operations = ("attention",)
    assert "1 checks" in session_steps.setup(session)
    assert list(session.checks) == [name]
    assert name in {job.name for job in check_jobs("cpu", ("attention",))}


@pytest.mark.slow
def test_the_whole_of_it_runs_on_a_cpu_and_leaves_at_most_eight_files(tmp_path: Path) -> None:
    from session_jobs import check_jobs, source_sha256

    names = [job.name for job in check_jobs("cpu", ("norm",)) if job.name.startswith("norm")]
    left = "norm: rms 37x33 fp32 residual"  # all other cases passed in the session before
    previous, out = tmp_path / "carried" / "previous", tmp_path / "out"
    previous.mkdir(parents=True)
    passed = {name: {"status": "ok", "source": source_sha256("norm")} for name in names if name != left}
    (previous / "check.json").write_text(json.dumps({"checks": passed}))
    command = [sys.executable, str(TOOLS / "gpu_session.py"), "first", "--device", "cpu", "--out", str(out)]
    command += ["--work", str(tmp_path / "work"), "--seconds", "40", "--only", "setup,versions,assembler,checks,cache"]
    command += ["--workers", "1", "--operations", "norm", "--carried", str(tmp_path / "carried")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    rows = json.loads((out / "check.json").read_text())["checks"]
    assert rows[left]["status"] == "ok", done.stdout
    assert rows[left]["checks"]
    assert {name: row for name, row in rows.items() if name in passed} == passed
    assert done.returncode == 0, done.stdout
    assert {path.name for path in out.iterdir()} <= FILES
