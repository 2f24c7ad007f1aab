"""The GPU session's steps "racecheck" and "launch shapes": what fails them, and what they keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import session_steps
from session import ProgramFailedError, Session
from session_support import make_session

SUMMARY = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"
REFUSED = "========= Error: Device not supported. Please refer to the list of supported devices.\n"


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the step where compute-sanitizer prints a text, or fails with it."""
    session = make_session(tmp_path)
    session.device = "cuda"
    monkeypatch.setattr(session_steps, "SANITIZER", tmp_path / "compute-sanitizer")
    monkeypatch.setenv("PATH", "")

    def run(text: str, fails: bool = False) -> str:
        (tmp_path / "compute-sanitizer").touch()

        def command(_: Session, program: object, *words: object) -> str:
            assert program == str(tmp_path / "compute-sanitizer")
            assert words[:4] == ("--tool", "racecheck", "--kernel-name", "kns=hopper")
            if fails:
                raise ProgramFailedError("exit status 1", text)
            return text

        monkeypatch.setattr(Session, "command", command)
        return session_steps.racecheck(session)

    run.session = session  # type: ignore[attr-defined]
    return run


def test_hazards_and_a_missing_summary_fail_the_step(checked: Any) -> None:
    assert checked("much\n" + SUMMARY.format(0, 0)) == "RACECHECK SUMMARY: 0 hazards"
    with pytest.raises(RuntimeError, match="2 hazards displayed"):
        checked("========= Error: Race reported\n" + SUMMARY.format(2, 2))
    with pytest.raises(RuntimeError, match="it ended"):
        checked("it ended\n")
    with pytest.raises(ProgramFailedError):
        checked("out of memory\n", fails=True)


def test_a_machine_without_the_check_is_named(checked: Any) -> None:
    assert session_steps.racecheck(checked.session) == "not checked: compute-sanitizer is not installed"
    assert checked(REFUSED, fails=True) == "not checked: compute-sanitizer does not support the device here"


def test_the_case_exists() -> None:
    import check_case

    module = check_case.load("scalekernels.attention")
    assert check_case.find(module, "B1 H2/1 T193 D64 bf16 causal").head_dimension == 64


def test_rows_of_launch_shapes_are_kept_although_a_program_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session(tmp_path)
    session.device = "cuda"
    session.tuned = [{"kernel": "forward D64", "candidate": "a"}, {"kernel": "tuning_loss", "candidate": "old"}]

    def python(_: Session, program: Path, option: str, output: Path) -> str:
        assert program.exists()
        assert option == "--output"
        output.write_text(json.dumps([{"kernel": program.stem, "candidate": "new"}]))
        if program.stem == "tuning_optimizer":
            raise ProgramFailedError("stopped after its time", "")
        return "a warning\n208 MiB: 3.1 ms\n"

    monkeypatch.setattr(Session, "python", python)
    with pytest.raises(RuntimeError, match=r"tuning_optimizer: stopped after its time; 208 MiB: 3\.1 ms"):
        session_steps.launch_shapes(session)
    assert [(row["kernel"], row["candidate"]) for row in session.tuned] == [
        ("forward D64", "a"), ("tuning_optimizer", "new"), ("tuning_loss", "new"),
    ]  # fmt: skip
    names = [step.name for step in session_steps.first()]
    assert names.index("tuning") < names.index("launch shapes") < names.index("cache")
