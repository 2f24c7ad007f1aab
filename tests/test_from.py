"""[from]: trials that start from other trials' weights, and runs that are continued bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from parent_support import CHILD, CONTINUED, PARENT, planned, refused, trained
from safetensors.torch import load_file, save_file
from support import PLACEMENT, REPOSITORY, edit_record

from scalebench import store
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.sweep import survey
from scalebench.running.worker import run_trial


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder whose ``results`` hold a parent; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("base")
    trained(folder, PARENT)
    return folder


@pytest.mark.parametrize(
    ("family", "optimizer", "steps"),
    [
        pytest.param("gpt", "adamw", 50, marks=pytest.mark.slow),
        pytest.param("gpt", "muon", 15, marks=pytest.mark.slow),
        pytest.param("bert", "lion", 15, marks=pytest.mark.slow),
        ("mlp", "momentum", 15),
    ],
)
def test_a_run_continued_with_its_optimizer_state_is_one_run_of_all_steps_bit_by_bit(
    tmp_path: Path, family: str, optimizer: str, steps: int
) -> None:
    """Weights, losses, optimizer state and the state of the random number generators."""
    text = PARENT.replace('"gpt"', f'"{family}"').replace("params = 3000", "params = 5000")
    settings = [f"train.optimizer={optimizer}", f"train.steps={steps}", "data.validation_samples=8"]
    if family == "mlp":
        text = text.replace("sequence_length = 16\n", "")
    (first,) = trained(tmp_path, text, *settings)
    (second,) = trained(tmp_path, CONTINUED, f"train.steps={steps}")
    (whole,) = trained(tmp_path, text, *settings, "name=whole", f"train.steps={2 * steps}")
    assert (first["first_step"], second["first_step"], whole["first_step"]) == (0, steps, 0)
    for name in ("weights.safetensors", "state.safetensors"):
        ours, theirs = (load_file(Path(row["attempt_dir"]) / name) for row in (second, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    losses = store.read_steps(whole["attempt_dir"])["train_loss_nats"].tolist()
    assert store.read_steps(first["attempt_dir"])["train_loss_nats"].tolist() == losses[:steps]
    assert store.read_steps(second["attempt_dir"])["train_loss_nats"].tolist() == losses[steps:]
    assert store.read_steps(second["attempt_dir"])["step"].tolist() == list(range(steps, 2 * steps))
    assert second["validation_loss_nats"] == whole["validation_loss_nats"] != first["validation_loss_nats"]
    assert second["samples_seen"] == whole["samples_seen"] == 2 * first["samples_seen"]
    assert second["parent_flops"] + steps * second["flops_per_step"] == 2 * steps * whole["flops_per_step"]


@pytest.mark.slow
def test_a_child_inherits_family_model_and_data_and_records_its_parent(copied: Path) -> None:
    (parent,) = store.load_results(copied / "results").to_dict("records")
    (trial,) = planned(copied, CHILD, "train.learning_rate=0.02")
    assert trial.trial.family == "gpt"
    assert trial.trial.model["depth"] == parent["depth"]
    assert trial.trial.data.validation_samples == 32
    assert (trial.trial.spec.learning_rate, trial.trial.spec.batch_size) == (0.02, 16)  # a default, not the parent's 4
    assert trial.trial.spec.sequence_length == 16
    (row,) = trained(copied, CHILD, "train.steps=3")
    assert row["parent_trial_id"] == parent["trial_id"]
    assert row["parent_weights_sha256"] == parent["weights_sha256"]
    assert row["parent_flops"] == 50 * parent["flops_per_step"]
    start = store.read_steps(row["attempt_dir"])["train_loss_nats"].iloc[0]
    losses = store.read_steps(parent["attempt_dir"])["train_loss_nats"]
    assert start < losses.iloc[0] - 1  # trained weights, not initial ones
    assert row["samples_seen"] == 3 * 16


def test_a_continued_run_takes_the_other_fields_of_train_from_its_parent(copied: Path) -> None:
    (trial,) = planned(copied, CONTINUED, "train.schedule=linear")
    spec = trial.trial.spec
    assert (spec.batch_size, spec.warmup_steps, spec.learning_rate) == (4, 5, 0.01)
    assert (spec.schedule, spec.steps) == ("linear", 50)


@pytest.mark.parametrize(
    ("settings", "graph"),
    [
        ([], "none"),
        (["train.implementation=compile"], "model"),
        (["train.implementation=fused"], "blocks"),
        (["train.implementation=compile", "train.graph=blocks"], "blocks"),
    ],
)
def test_a_continued_run_in_another_implementation_gets_the_graph_of_that(
    copied: Path, settings: list[str], graph: str
) -> None:
    (trial,) = planned(copied, CONTINUED, *settings)
    assert trial.trial.spec.graph == graph


def test_a_continued_run_keeps_the_graph_that_its_parent_asked_for_unless_the_precision_changes(copied: Path) -> None:
    (attempt,) = (copied / "results").glob("parent/trials/*/*")
    header = store.read_json(attempt / "trial.json")
    header["trial"]["spec"] |= {"implementation": "fused", "graph": "step", "precision": "bfloat16"}
    store.write_json(attempt / "trial.json", header)
    graphs = [
        planned(copied, CONTINUED, *settings)[0].trial.spec.graph
        for settings in ([], ["train.implementation=fused"], ["train.precision=float32"])
    ]
    assert graphs == ["step", "step", "blocks"]


def test_a_text_is_split_by_the_fraction_alone(copied: Path) -> None:
    (trial,) = planned(copied, CHILD, "train.seed=1")
    assert trial.trial.spec.seed == 1
    assert "data.validation_fraction: 0.3: " in refused(copied, CHILD, "data.validation_fraction=0.3")
    text = copied / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"document {number} " * 20)
    other = ["data.validation_fraction=0.3", f"data.source=text:{text}"]
    (elsewhere,) = planned(copied, CHILD, *other)
    assert elsewhere.trial.data.validation_fraction == 0.3


def test_the_readmes_example_plans(tmp_path: Path) -> None:
    trained(tmp_path, (REPOSITORY / "studies" / "gpt.toml").read_text(), "model.params=2000", "run.checkpoint=true",
            "train.steps=3", "data.validation_samples=8", "train.schedule=constant")  # fmt: skip
    blocks = (REPOSITORY / "README.md").read_text().split("```toml\n")
    (example,) = (text for block in blocks if "[from]" in (text := block.partition("```")[0]))
    (trial,) = planned(tmp_path, example)
    assert trial.parent.identity.state_sha256 is not None
    assert (trial.trial.spec.implementation, trial.trial.spec.schedule, trial.steps) == ("sdpa", "wsd", 100)


def test_the_parents_cost_adds_up_over_a_chain(copied: Path) -> None:
    (child,) = trained(copied, CHILD, "train.steps=2")
    (grandchild,) = trained(copied, CHILD.replace('"parent"', '"child"'), "name=grandchild", "train.steps=1")
    assert grandchild["parent_trial_id"] == child["trial_id"]
    assert grandchild["parent_flops"] == child["parent_flops"] + 2 * child["flops_per_step"]


def test_parents_are_an_axis_that_where_narrows(copied: Path) -> None:
    trained(copied, PARENT, "train.seed=[1, 2]", "train.steps=2")
    assert len(planned(copied, CHILD)) == 3
    trials = planned(copied, CHILD + 'where = "seed > 0"\n', "train.learning_rate=[0.1, 0.2]")
    assert [(trial.parent.trial.spec.seed > 0, trial.trial.spec.learning_rate) for trial in trials] == [
        (True, 0.1), (True, 0.2), (True, 0.1), (True, 0.2),
    ]  # fmt: skip
    by_path = CHILD.replace('study = "parent"', f'results = "{copied / "results" / "parent"}"')
    assert {trial.trial_id for trial in planned(copied, by_path)} == {
        trial.trial_id for trial in planned(copied, CHILD)
    }


def test_a_study_does_not_start_from_its_own_trials(copied: Path) -> None:
    results = copied / "results"
    by_path = CHILD.replace('study = "parent"', f'results = "{results}"')
    (row,) = trained(copied, by_path, "train.steps=2")
    (again,) = planned(copied, by_path, "train.steps=2")
    assert again.trial_id == row["trial_id"]
    (Path(row["attempt_dir"]) / "record.json").write_text("{}")  # its own damaged attempt is to be run again
    assert [trial.trial_id for trial in planned(copied, by_path, "train.steps=2")] == [row["trial_id"]]
    line = refused(copied, by_path.replace(str(results), str(results / "child")))
    assert "no trials except those of 'child' itself" in line


def test_parents_without_state_are_left_out_where_the_run_is_continued(copied: Path) -> None:
    trained(copied, PARENT, "train.seed=1", "train.steps=2")
    _, stateless = (store.read_record(path) for path in sorted((copied / "results").glob("parent/trials/*/*")))
    edit_record(Path(stateless["attempt_dir"]), state_sha256=None)
    assert len(planned(copied, CHILD)) == 2
    (trial,) = planned(copied, CONTINUED)
    assert trial.parent.trial_id != stateless["trial_id"]


def test_a_trial_without_state_is_run_again_where_its_study_keeps_what_children_need(copied: Path) -> None:
    path = copied / "study.toml"
    path.write_text(PARENT)
    (attempt,) = (copied / "results").glob("parent/trials/*/*")
    row = store.read_record(attempt)

    def missing(*settings: str) -> int:
        return len(survey(load_study(path, settings), copied / "results").missing)

    assert missing() == 0
    columns = ("state_sha256", "weights_sha256")
    for column in columns:
        edit_record(attempt, **{other: row[other] for other in columns} | {column: None})
        assert (missing(), missing("run.checkpoint=false")) == (1, 0)


@pytest.mark.slow
def test_the_id_depends_on_the_parents_weights_and_on_continuing_the_run(copied: Path) -> None:
    (before,) = planned(copied, CHILD)
    (continued,) = planned(copied, CONTINUED, "train.batch_size=16", "train.warmup_steps=20", "train.schedule=wsd")
    assert before.trial.spec.model_dump(exclude={"learning_rate"}) == continued.trial.spec.model_dump(
        exclude={"learning_rate"}
    )
    assert before.trial_id != continued.trial_id
    shutil.rmtree(copied / "results")
    trained(copied, PARENT, "train.seed=1")
    (after,) = planned(copied, CHILD, "train.seed=0")
    assert before.trial.spec == after.trial.spec
    assert before.trial_id != after.trial_id


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        ("no results", [], "no results here"),
        ("no weights", [], "none of which kept its weights"),
        ("no state", ["from.optimizer_state=true"], "from.optimizer_state: "),
        ("no file", [], "has no weights.safetensors"),
        ("another weight", [], "the file changed"),
        ("cut short", [], "cut short or changed"),
    ],
)
def test_parents_that_cannot_serve_are_refused_with_the_command_that_makes_them(
    copied: Path, change: str, settings: list[str], expected: str
) -> None:
    (attempt,) = (copied / "results").glob("parent/trials/*/*")
    weights = attempt / "weights.safetensors"
    files = store.read_json(attempt / "record.json")["files"]
    if change == "no results":
        shutil.rmtree(copied / "results")
    if change == "no weights":
        edit_record(attempt, weights_file_bytes=None)
    if change == "no state":
        edit_record(attempt, state_sha256=None)
    if change == "no file":
        weights.unlink()
    if change == "another weight":
        tensors = load_file(weights)
        next(iter(tensors.values()))[0] += 1
        save_file(tensors, weights)
        edit_record(attempt, files=files | {weights.name: weights.stat().st_size})
    if change == "cut short":
        weights.write_bytes(weights.read_bytes()[:-8])
    line = refused(copied, CHILD, *settings)
    assert expected in line
    assert "scalebench run parent --set run.checkpoint=true --results" in line
    assert line.endswith(" --retry ok") == (change in ("no file", "another weight"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (['from.where="seed == 7"'], "matches 'seed == 7'; its trials have seed 0"),
        (['from.where="sead == 0"'], "from.where: "),
        (["model.family=mlp"], "family 'gpt', not 'mlp'"),
    ],
)
def test_the_command_is_left_out_where_running_the_parents_does_not_help(
    copied: Path, settings: list[str], expected: str
) -> None:
    line = refused(copied, CHILD, *settings)
    assert expected in line
    assert "to make its parents" not in line


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["from.optimiser_state=true"],
            "from.optimiser_state: unknown key 'optimiser_state'; did you mean 'optimizer_st",
        ),
        (["from.optimizer_state=1"], "from.optimizer_state: input should be a valid boolean (given 1)"),
        (["from.results=r"], 'from: needs either study = "NAME" or results = "PATH"'),
        (['from.where="import os"'], "from.where: "),
        (["name=parent"], "from.study: a study cannot start from its own trials"),
        (["model.family=mlp"], "family 'gpt', not 'mlp'"),
        (["model.params=1e4"], "model.params: with [from] a model has the size of its parent"),
        (["model.width=24"], "do not fit another width"),
        (["from.optimizer_state=true", "train.optimizer=lion"], "train.optimizer: the parent's state is that of adamw"),
        (["workload=inference", "train={}"], "from: the workload 'inference' starts from no weights"),
    ],
)
def test_each_mistake_in_from_is_one_line(copied: Path, settings: list[str], expected: str) -> None:
    assert expected in refused(copied, CHILD, *settings)


def test_weights_that_change_after_planning_fail_the_trial(copied: Path) -> None:
    path = copied / "study.toml"
    path.write_text(CHILD)
    study = load_study(path)
    (trial,) = plan(study, copied / "results")
    (attempt,) = (copied / "results").glob("parent/trials/*/*")
    with (attempt / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    child = store.new_attempt(copied / "results" / "child", trial.trial_id)
    header = trial_header(study, trial, "a test")
    store.write_json(child / "trial.json", header)
    assert run_trial(child, header, PLACEMENT) == "failed"
    assert "the file changed" in store.read_record(child)["error_message"]
