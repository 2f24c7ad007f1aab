"""The runner of `make gpu`: parts in processes of their own, side by side, resumable, until a deadline."""

from __future__ import annotations

import json
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import check_case
import gpu
import pytest
from gpu_parts import Part, Run, ended, run_parts

from scalebench.cli import app


def make_run(out: Path, code: str = "1") -> Run:
    """A run with nothing done."""
    out.mkdir(exist_ok=True)
    return Run(out, 1.0, 2, True, (), gpu.environment_of(out, False), code)


def python(name: str, text: str, timeout_s: float = 60.0) -> Part:
    """A part that runs a line of Python."""
    return Part(name, (sys.executable, "-c", text), timeout_s)


def statuses(run: Run) -> dict[str, str]:
    """What became of each part."""
    return {row["name"]: row["status"] for row in run.rows}


def test_every_end_of_a_part_is_told_apart_and_the_others_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "out")
    parts = [
        python("good", "print('fine')"),
        python("bad", "import sys; print('the reason'); sys.exit(1)"),
        python("faulty", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        python("slow", "import time; time.sleep(60)", timeout_s=0.3),
        python("last", "print('fine')"),
    ]
    run_parts(run, "check", parts, 2, time.monotonic() + 60)
    assert statuses(run) == {
        "good": "ok", "bad": "failed", "faulty": "crashed by SIGSEGV", "slow": "timeout", "last": "ok",
    }  # fmt: skip
    kept = json.loads((run.out / "parts" / "check" / "bad.json").read_text())
    assert kept["detail"] == "the reason"
    assert (run.out / "parts" / "check" / "good.log").read_text() == "fine\n"


@pytest.mark.parametrize("dry", [True, False])
def test_every_part_is_a_command_that_its_program_takes(tmp_path: Path, dry: bool) -> None:
    run = Run(tmp_path, 1.0, 2, dry, gpu.OPERATIONS, gpu.environment_of(tmp_path, dry), "1", cases=2)
    checks = [*gpu.check_parts(run), gpu.coverage_part(run)]
    kinds = [check_case.command_line().parse_args(part.command[2:]).kind for part in checks]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "canary": 1 if dry else 4, "case": 2 * len(gpu.OPERATIONS), "steps": 2 * len(gpu.OPTIMIZERS), "coverage": 1,
    }  # fmt: skip
    for part in (*gpu.compare_parts(run), *gpu.sweep_parts(run), *gpu.report_parts(run)):
        assert part.command[1:3] == ("-m", "scalebench.cli")
        app.parse_args(part.command[3:], exit_on_error=False, print_error=False)


def test_what_ended_well_is_not_done_again_by_the_same_code(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    parts = [python(name, f"open({str(marks)!r}, 'a').write('{name}'); assert '{name}' != 'b'") for name in "ab"]
    for _ in range(2):
        run_parts(make_run(tmp_path / "out"), "check", parts, 1, time.monotonic() + 60)
    assert marks.read_text() == "abb"
    run_parts(make_run(tmp_path / "out", code="2"), "check", parts[:1], 1, time.monotonic() + 60)
    assert marks.read_text() == "abba"


def test_a_deadline_stops_what_runs_with_its_children_and_says_what_did_not_fit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "out")
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    spawns = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    run_parts(run, "sweep", [python("long", spawns), python("next", "1")], 1, begun + 1)
    assert statuses(run) == {"long": "did not fit", "next": "did not fit"}
    time.sleep(max(0.0, begun + 4 - time.monotonic()))
    assert not mark.exists()
    later = make_run(tmp_path / "out")
    run_parts(later, "sweep", [python("next", "1")], 1, time.monotonic() + 60)
    assert statuses(later) == {"next": "ok"}


def test_a_stage_that_fails_keeps_no_other_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {
        "check": lambda run: [python("a", "raise SystemExit(1)")],
        "compare": lambda run: [python("b", "1")],
        "report": lambda run: [python("c", "open('report.html', 'w').write('page')")],
    }
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr(gpu, "coverage_part", lambda run: python("coverage", "1"))
    out = tmp_path / "results"
    assert gpu.main(["--out", str(out)]) == 1
    text = (out / "summary.md").read_text()
    assert "- check: 1 of 2 parts ended well\n  - a: failed" in text
    assert "- compare: 1 of 1" in text
    with tarfile.open(tmp_path / "results.tar.gz") as packed:
        assert {"results/summary.md", "results/report.html", "results/parts/compare/b.json"} <= set(packed.getnames())
    assert gpu.main(["--out", str(out), "--stages", "compare,report"]) == 0


def test_stages_are_refused_by_name_when_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gpu.main(["--out", str(tmp_path / "o"), "--stages", "chekc"])
    assert end.value.code == 2
    assert "known: check, compare, sweep, report" in capsys.readouterr().err


def test_pure_wheels_of_absent_packages_are_unpacked_and_importable(tmp_path: Path) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    for name, tag in (
        ("absent_one", "py3-none-any"),
        ("pytest", "py3-none-any"),
        ("native", "cp311-cp311-linux_x86_64"),
    ):
        with zipfile.ZipFile(wheels / f"{name}-1.0-{tag}.whl", "w") as archive:
            archive.writestr(f"{name}.py", "value = 1\n")
    assert gpu.unpack_wheels(wheels, out / "packages") == ["absent_one"]
    run = make_run(out)
    run_parts(run, "check", [python("import", "import absent_one; assert absent_one.value")], 1, time.monotonic() + 60)
    assert statuses(run) == {"import": "ok"}


def test_an_exit_status_is_told_in_words() -> None:
    assert [ended(code) for code in (0, 1, -9, -11)] == ["ok", "failed", "crashed by SIGKILL", "crashed by SIGSEGV"]
