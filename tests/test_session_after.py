"""The GPU session's step "after training": its studies plan for a GPU, and what fails is reported by its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import session_after
import session_measures
import session_steps
from session import ProgramFailedError, Session
from session_support import make_session

from scalebench.cli.app import app
from scalebench.running import planning
from scalebench.running.parents import ParentTrial
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.study import Parent

OK = "6 trials, 6 to run\n3 executed in 12 s: 3 ok\nreport: scalebench report results\n"


def path_of(name: str) -> Path:
    return session_after.STUDIES / f"{name}.toml"


def test_the_studies_plan_for_a_gpu_and_take_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalebench.workloads.quantize.find_spec", lambda _: object())
    (base,) = plan(load_study(path_of("base"), ["train.device=cuda"]))
    identity = Parent(weights_sha256="0" * 64)
    trials: dict[str, list[PlannedTrial]] = {"base": [base]}
    for name in session_after.CHILDREN:
        study = load_study(path_of(name), [f"{'quantize' if name == 'int4' else name}.device=cuda"])
        starts = study.start is not None
        parent = ParentTrial(base.trial_id, "base", base.trial, Path(), identity, base.flops, starts=starts)
        monkeypatch.setattr(planning, "find_parents", lambda *_, parent=parent: [parent])
        trials[name] = plan(study)
    specs = {name: [each.trial.spec for each in of] for name, of in trials.items()}
    assert {path.stem for path in session_after.STUDIES.glob("*.toml")} == set(trials)
    assert {spec.method for spec in specs["prune"]} == {"2:4", "magnitude-global", "heads"}
    assert {spec.scheme for spec in specs["quantize"]} == {"bfloat16", "int8-weight-only", "int8-dynamic"}
    assert {spec.scheme for spec in specs["int4"]} == {"int4-weight-only"}
    assert {spec.method for spec in specs["finetune"]} == {"full", "lora"}
    assert {spec.implementation for spec in specs["distill"]} == {"sdpa", "fused"}
    assert {spec.precision for of in specs.values() for spec in of} == {"bfloat16"}
    assert base.trial.model["width"] % 1024 == base.trial.model["hidden"] % 1024 == 0  # int4's tiles pad nothing
    assert sum(each.flops for of in trials.values() for each in of) < 5e14  # seconds at a tenth of a GPU's peak


def test_the_step_is_part_of_the_second_phase_and_takes_a_minute_at_most() -> None:
    (step,) = (step for step in session_steps.second() if step.name == "after training")
    assert step.most_s <= 60
    assert step.do is session_after.after_training


def test_what_failed_is_reported_by_its_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "int8-dynamic needs torchao (No module named 'torchao'): pip install torchao"
    commands: list[tuple[str, ...]] = []

    def python(_: Session, *words: Any, **__: Any) -> str:
        commands.append(tuple(map(str, words)))
        if Path(words[3]).stem == "quantize":
            output = f"0123456789abcdef unsupported: {missing}\n3 executed in 9 s: 2 ok, 1 unsupported\nmuch\nmore\n"
            raise ProgramFailedError("exit status 1: much / more", output)
        return OK

    monkeypatch.setattr(Session, "python", python)
    monkeypatch.setattr(session_measures, "keep", lambda _: None)
    monkeypatch.setattr(session_measures, "APART_S", 0.0)
    with pytest.raises(RuntimeError) as caught:
        session_after.after_training(make_session(tmp_path))
    lines = str(caught.value).split("; ")
    assert lines == [
        "prune: ok: 3 executed in 12 s: 3 ok", f"quantize: failed: unsupported: {missing}",
        *(f"{name}: ok: 3 executed in 12 s: 3 ok" for name in ("int4", "finetune", "distill")),
    ]  # fmt: skip
    assert len(commands) == 1 + len(session_after.CHILDREN)
    assert Path(commands[0][3]).stem == "base"  # the others start from it
    for words in commands:
        app.parse_args(words[2:], exit_on_error=False, print_error=False)
