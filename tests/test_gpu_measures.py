"""What the GPU session measures, rehearsed without a GPU: programs that take turns, and the files that are left."""

from __future__ import annotations

import random
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import session_measures
import session_steps
from comparison_support import forked_processes  # noqa: F401 - a fixture
from session import Session
from support import REPOSITORY, SOURCE_PATH, run_here

import scalebench
from scalebench.running.planning import load_study

FILES = {
    "summary.md", "check.json", "tune.json", "compare.parquet", "train.parquet", "results.tar.gz", "log.txt",
    "cache.tar.xz",
}  # fmt: skip


def make_session(tmp_path: Path, seconds: float = 100.0) -> Session:
    """A session on a CPU with nothing done."""
    return Session.begin(
        phase="second", out=tmp_path / "out", work=tmp_path / "work", carried=None, workers=2, device="cpu",
        deadline=time.monotonic() + seconds,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_out_has_at_most_eight_files_when_there_are_trials_and_comparisons(
    tmp_path: Path, small_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)
    session = make_session(tmp_path, 300.0)
    results = session.work / "results"
    study = load_study(small_study, ["model.params=200", "train.seed=0"])
    assert [row["status"] for row in run_here(study, results).values()] == ["ok"]
    operation = str(REPOSITORY / "tests" / "cheating_operation.py")
    scalebench.compare(
        operation, results=results, providers="eager", shapes="length=7", device="cpu", processes=1, seconds=0.03
    )
    session.say("begun")
    (session.out / "cache.tar.xz").write_bytes(b"")
    session_measures.keep(session)
    session.write()
    assert {path.name for path in session.out.iterdir()} == FILES
    assert len(pd.read_parquet(session.out / "train.parquet")) == 1
    assert pd.read_parquet(session.out / "compare.parquet")["provider"].tolist() == ["eager"]
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["tar", "xf", session.out / "results.tar.gz", "-C", tmp_path / "elsewhere"], check=True)
    page = tmp_path / "page.html"
    scalebench.report(tmp_path / "elsewhere" / "results", page)  # what `scalebench report` does
    assert small_study.stem in page.read_text()


def test_an_archive_that_would_be_too_large_leaves_out_profiles_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session(tmp_path)
    results, chance = session.work / "results", random.Random(0)
    for name in ("profile-fused-768.json.gz", "trial.log", "record.json", "weights.safetensors"):
        (results / name).write_bytes(chance.randbytes(2000))
    session_measures.pack_results(session, results)
    with tarfile.open(session.out / "results.tar.gz") as packed:
        assert set(packed.getnames()) == {
            "results/profile-fused-768.json.gz", "results/trial.log", "results/record.json",
        }  # fmt: skip
    monkeypatch.setattr(session_measures, "MOST_BYTES", 3000)
    session_measures.pack_results(session, results)
    with tarfile.open(session.out / "results.tar.gz") as packed:
        assert packed.getnames() == ["results/record.json"]
    assert (session.out / "results.tar.gz").stat().st_size < 3000


def test_what_was_not_accepted_is_told_in_one_short_line() -> None:
    wrong = [f"triton is WRONG in case {i}: param_000: error 0.0307 exceeds 0.00311; {'x' * 4000}" for i in range(3)]
    line = session_measures.verdict("\n".join(["a table", *wrong]))
    assert line.startswith("3 not accepted, first triton in case 0: param_000: error 0.0307 exceeds")
    early = "ended early, what was measured is kept: deadline; not measured: " + "a case, " * 100
    both = session_measures.verdict("\n".join([early, *wrong]))
    assert "3 not accepted" in both
    assert "ended early: deadline" in both
    assert max(len(line), len(both)) <= 200
    assert session_measures.verdict("a table\nwithout fault") == ""


def test_programs_that_take_turns_run_together_and_a_failure_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_measures, "keep", lambda _: None)
    monkeypatch.setattr(session_measures, "APART_S", 0.0)
    session, barrier = make_session(tmp_path), threading.Barrier(2, timeout=30)

    def fine() -> str:
        barrier.wait()
        return "measured"

    def broken() -> str:
        barrier.wait()
        raise RuntimeError("2 not accepted")

    with pytest.raises(RuntimeError, match="one: ok: measured; two: failed: 2 not accepted"):
        session_measures.together(session, {"one": fine, "two": broken})
    barrier.reset()
    assert session_measures.together(session, {"a": fine, "b": fine}) == "a: ok: measured; b: ok: measured"


def test_an_assembler_is_taken_as_sound_only_from_the_same_versions_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, driver = make_session(tmp_path), "driver, most SM clock, power limit, temperature"
    now = {"torch": "2.11", "triton": "3.6", "device": "H200", driver: "580, 1980 MHz, 700 W, 40"}
    monkeypatch.setattr(Session, "command", lambda *_, **__: "ptxas\nrelease 13.5\nbuild")
    session.versions = dict(now)
    carried = {"carried": {"TRITON_PTXAS_PATH": "/a/ptxas"}}
    verdict = {"assemblers": "carried: sound; bundled: sound", "ptxas": "carried: release 13.5"}
    before = now | verdict | {driver: "580, 1980 MHz, 700 W, 65"}
    session.versions_before = before
    assert session_steps._verdict_before(session, carried)
    assert not session_steps._verdict_before(session, {})  # two were tried before
    for name, other in (
        ("torch", "2.12"), ("triton", "3.7"), ("device", "H100"), (driver, "590, 1980 MHz"),
        ("assemblers", "carried: tile 0: wrong; bundled: sound"), ("ptxas", "carried: release 13.4"),
    ):  # fmt: skip
        session.versions_before = before | {name: other}
        assert not session_steps._verdict_before(session, carried), name
    session.versions_before = {}
    assert not session_steps._verdict_before(session, carried)
    session.versions_before = now | {"assemblers": "bundled: sound", "ptxas": "bundled: release 13.0"}
    assert session_steps._verdict_before(session, {})
