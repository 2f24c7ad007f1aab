"""Checkpoints of a run under way, and decay branches from them: bit for bit runs from scratch of the same schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parent_support import CONTINUED, PARENT, planned, refused, trained
from safetensors.torch import load_file

from scalebench import store
from scalebench.cli.app import main
from scalebench.running.planning import load_study
from scalebench.running.sweep import survey

TRUNK = PARENT + "checkpoint_steps = [8, 40]\n"
BRANCH = CONTINUED.replace("steps = 50\n", 'schedule = "wsd"\ndecay_fraction = 0.2\n') + "step = [8, 40]\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a run at a constant rate that kept checkpoints; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("base")
    trained(folder, TRUNK)
    return folder


@pytest.mark.slow
def test_branches_are_bit_for_bit_runs_from_scratch(copied: Path) -> None:
    """Weights, optimizer state and random numbers; 20 % of 10 and of 50 steps decay."""
    rows = sorted(trained(copied, BRANCH), key=lambda row: row["first_step"])
    assert [(row["first_step"], row["stop_step"]) for row in rows] == [(8, 2), (40, 10)]
    schedule = ["train.schedule=wsd", "train.decay_fraction=0.2", "name=whole"]
    for row, steps in zip(rows, (10, 50), strict=True):
        (whole,) = trained(copied, PARENT, f"train.steps={steps}", *schedule)
        for name in ("weights.safetensors", "state.safetensors"):
            ours, theirs = (load_file(Path(each["attempt_dir"]) / name) for each in (row, whole))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        losses = store.read_steps(whole["attempt_dir"])["train_loss_nats"].tolist()
        assert store.read_steps(row["attempt_dir"])["train_loss_nats"].tolist() == losses[row["first_step"] :]
        assert row["validation_loss_nats"] == whole["validation_loss_nats"]
        assert row["samples_seen"] == whole["samples_seen"]
        assert row["parent_flops"] + row["stop_step"] * row["flops_per_step"] == steps * whole["flops_per_step"]


@pytest.mark.slow
def test_keeping_checkpoints_does_not_change_a_run(base: Path, tmp_path: Path) -> None:
    (plain,) = trained(tmp_path, PARENT)
    (row,) = store.load_results(base / "results").to_dict("records")
    assert plain["weights_sha256"] == row["weights_sha256"]
    assert plain["trial_id"] == row["trial_id"]
    assert {path.name for path in Path(row["attempt_dir"]).glob("step-*/*")} == {
        "weights.safetensors", "state.safetensors",
    }  # fmt: skip


def test_checkpoints_count_as_parents_in_the_plan(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "branch.toml").write_text(BRANCH)
    with pytest.raises(SystemExit):
        main(["plan", str(copied / "branch.toml"), "--results", str(copied / "results")])
    printed = capsys.readouterr().out
    assert "axes: parents (2) = 2\n" in printed
    assert printed.count("\ncontinues ") == 2


def test_a_branch_has_its_own_budget_where_the_file_names_one(copied: Path) -> None:
    budget = [(trial.parent.branch_step, trial.steps) for trial in planned(copied, BRANCH, "train.steps=7")]
    assert sorted(budget) == [(8, 7), (40, 7)]
    (weights_only, _) = planned(copied, BRANCH, "from.optimizer_state=false", "train.steps=7")
    assert weights_only.parent.identity.state_sha256 is None


def test_a_trial_without_the_checkpoints_is_run_again(copied: Path) -> None:
    path = copied / "study.toml"
    path.write_text(TRUNK)
    for settings, missing in (([], 0), (["run.checkpoint_steps=[8]"], 0), (["run.checkpoint_steps=[8, 9]"], 1)):
        assert len(survey(load_study(path, settings), copied / "results").missing) == missing


def test_a_checkpoint_that_was_not_kept_or_changed_is_refused(copied: Path) -> None:
    assert "from.step: " in (line := refused(copied, BRANCH, "from.step=9"))
    assert "after 9 steps; it has 8, 40; to make its parents: scalebench run parent" in line
    for name in ("state.safetensors", "weights.safetensors"):
        (path,) = (copied / "results").glob(f"parent/trials/*/*/step-8/{name}")
        with path.open("ab") as file:
            file.write(b"x")
        assert f"step-8/{name}: SHA-256" in refused(copied, BRANCH)
    (index,) = (copied / "results").glob("parent/trials/*/*/checkpoints.json")
    for content in ('{"eight": {}}', '{"8": {"weights_sha256": 1}}'):
        index.write_text(content)
        assert "checkpoints.json: '" in refused(copied, BRANCH)


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        (TRUNK, ["run.checkpoint_steps=[8, 51]"], "run.checkpoint_steps: 51 is beyond the 50 steps"),
        (TRUNK, ["run.checkpoint_steps=[0]"], "run.checkpoint_steps"),
        (TRUNK, ["workload=inference", "train={}"], "run.checkpoint_steps: the workload 'inference' keeps no state"),
    ],
)
def test_checkpoints_that_cannot_be_are_one_line(tmp_path: Path, text: str, settings: list[str], expected: str) -> None:
    assert expected in refused(tmp_path, text, *settings)
