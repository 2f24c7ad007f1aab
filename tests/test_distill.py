"""Distillation: the loss and its gradient, running and stored teachers, what a student costs and records."""

from __future__ import annotations

import gc
import json
import math
import shutil
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from parent_support import PARENT, STUDENT, planned, refused, trained

from scalebench import store
from scalebench.cli.app import main
from scalebench.families import FAMILIES, model_fields
from scalebench.families.modules.decoder import GPT
from scalebench.running.chain import ancestors
from scalebench.running.planning import load_study, plan
from scalebench.workloads import columns_of
from scalebench.workloads.distill_run import DistillRun
from scalebench.workloads.trained import load_trained

TEACHER = PARENT.replace("steps = 50", "steps = 30").replace('"parent"', '"teacher"')
VOCABULARY, LENGTH = 256, 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose results hold two teachers, of seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("base")
    trained(folder, TEACHER, "train.seed=[0, 1]")
    return folder


FIRST = "distill.teacher.where=seed == 0"


@pytest.mark.slow
def test_without_weight_on_the_teacher_a_student_trains_bit_by_bit_as_without_one(copied: Path) -> None:
    plain = (
        STUDENT.replace('workload = "distill"\n', "").replace("[distill]", "[train]").replace('"student"', '"plain"')
    )
    plain = plain.replace('teacher = {study = "teacher"}\n', "sequence_length = 16\n")
    plain += "[data]\nvalidation_samples = 32\n"
    (alone,) = trained(copied, plain)
    (row,) = trained(copied, STUDENT, FIRST, "distill.soft_weight=0.0")
    assert row["weights_sha256"] == alone["weights_sha256"]
    assert row["validation_loss_nats"] == alone["validation_loss_nats"]
    losses = [store.read_steps(each["attempt_dir"])["train_loss_nats"].tolist() for each in (row, alone)]
    assert losses[0] == losses[1]
    assert row["teacher_flops"] == 0
    assert row["total_flops"] == 5 * row["flops_per_step"] == 5 * alone["flops_per_step"]


@pytest.fixture(scope="module")
def distilled(base: Path) -> dict[str, Any]:
    """A student of the first teacher, which ran along."""
    (row,) = trained(base, STUDENT, FIRST, "distill.temperature=2.0", "distill.soft_weight=0.8")
    return row


@pytest.mark.slow
def test_a_student_records_its_teacher_and_what_both_cost(base: Path, distilled: dict[str, Any]) -> None:
    teacher = next(
        row for row in store.load_results(base / "results" / "teacher").to_dict("records") if not row["seed"]
    )
    assert distilled["parent_trial_id"] == teacher["trial_id"]
    assert distilled["parent_weights_sha256"] == teacher["weights_sha256"]
    assert distilled["parent_flops"] == 30 * teacher["flops_per_step"]
    forward = teacher["flops_per_step"] // (3 * 4)  # of a sample; both train on 16 tokens
    assert distilled["teacher_forward_flops"] == forward
    assert distilled["teacher_flops"] == 5 * 4 * forward
    student = distilled["flops_per_step"] - 4 * forward
    family = FAMILIES["gpt"]
    config = family.Config(**{name: distilled[name] for name in model_fields(family)})
    assert student == 3 * 4 * family.count(config, LENGTH).forward_flops
    assert distilled["total_flops"] == 5 * distilled["flops_per_step"]
    assert (distilled["teacher_params"], distilled["params"]) == (teacher["params"], family.count(config).total)
    assert distilled["loss_before_nats"] == pytest.approx(teacher["validation_loss_nats"], abs=1e-6)
    added = distilled["validation_loss_nats"] - distilled["loss_before_nats"]
    assert distilled["loss_added_nats"] == pytest.approx(added, abs=1e-9)
    assert distilled["weight_bytes"] == 4 * distilled["params"] + (
        distilled["weight_bytes_before"] - 4 * teacher["params"]
    )
    assert distilled["stored_bytes"] is None


@pytest.mark.slow
def test_the_columns_of_a_record_are_the_declared_ones(distilled: dict[str, Any]) -> None:
    record = json.loads((Path(distilled["attempt_dir"]) / "record.json").read_text())
    declared = {column.name for column in columns_of("distill")}
    assert declared | set(model_fields(FAMILIES["gpt"])) >= set(record) - {"schema", "files", "sha256"} >= declared


@pytest.mark.slow
def test_a_student_moves_to_its_teacher(copied: Path) -> None:
    (row,) = trained(copied, STUDENT, FIRST, "distill.steps=40")
    losses = store.read_steps(row["attempt_dir"])["train_loss_nats"]
    assert losses.iloc[-5:].mean() < 0.5 * losses.iloc[0]
    assert row["validation_loss_nats"] < math.log(VOCABULARY) - 0.5


@pytest.mark.slow
def test_all_log_probabilities_stored_train_as_a_teacher_that_runs_along(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are gone at the end, and the teacher is in memory at no step."""
    alive: WeakSet[GPT] = WeakSet()
    build = GPT.__init__

    def built(model: GPT, *arguments: Any) -> None:
        build(model, *arguments)
        alive.add(model)

    monkeypatch.setattr(GPT, "__init__", built)
    models: list[int] = []
    check = DistillRun.check

    def counted(run: DistillRun, done: int) -> None:
        models.append(len(alive))
        check(run, done)

    monkeypatch.setattr(DistillRun, "check", counted)
    settings = (FIRST, "distill.temperature=2.0", "distill.soft_weight=0.8")
    (along,) = trained(copied, STUDENT, *settings)
    gc.collect()
    (stored,) = trained(copied, STUDENT, *settings, f"distill.top_k={VOCABULARY}")
    assert models == [2, 1]
    losses = [store.read_steps(row["attempt_dir"])["train_loss_nats"].to_numpy() for row in (along, stored)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert stored["validation_loss_nats"] == pytest.approx(along["validation_loss_nats"], rel=1e-5)
    predictions = 5 * 4 * LENGTH
    tensors = predictions * (VOCABULARY * (4 + 1) + 4)  # float32, 8-bit classes, and the others' sum
    assert tensors < stored["stored_bytes"] < tensors + 1000
    assert stored["store_time_s"] > 0
    assert stored["total_flops"] == along["total_flops"]
    assert stored["flops_per_step"] == along["flops_per_step"] - along["teacher_flops"] // 5
    assert not (Path(stored["attempt_dir"]) / "teacher").exists()
    (few,) = trained(copied, STUDENT, *settings, "distill.top_k=3")
    assert few["stored_bytes"] < predictions * (3 * 5 + 4) + 1000
    assert few["train_loss_nats"] < stored["train_loss_nats"]


@pytest.mark.slow
def test_stored_log_probabilities_over_several_files(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = trained(copied, STUDENT, FIRST, "distill.top_k=3")
    killed = Path(whole["attempt_dir"]) / "teacher"
    killed.mkdir()
    (killed / "00000.safetensors").touch()
    monkeypatch.setattr("scalebench.workloads.distill_teacher.SHARD_BYTES", 2 * 4 * LENGTH * (3 * 5 + 4))
    (parts,) = trained(copied, STUDENT, FIRST, "distill.top_k=3")
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert parts["stored_bytes"] > whole["stored_bytes"]
    assert not killed.exists()  # what an attempt that was killed had left


def test_students_multiply_with_teachers_at_equal_total_flops(copied: Path) -> None:
    settings = ("model.params=[1600, 3000]", "distill.flops=1e8", "distill.soft_weight=[0.5, 1.0]")
    trials = planned(copied, STUDENT.replace("steps = 5\n", ""), *settings)
    assert len(trials) == len({trial.trial_id for trial in trials}) == 2 * 2 * 2
    assert {trial.parent.trial.spec.seed for trial in trials} == {0, 1}
    assert all(trial.flops == pytest.approx(1e8, rel=0.02) for trial in trials)
    assert all(trial.trial.spec.sequence_length == LENGTH for trial in trials)


def test_settings_without_effect_make_no_second_trial(copied: Path) -> None:
    settings = ("distill.soft_weight=0.0", "distill.temperature=[1.0, 2.0]", "distill.top_k=[2, 4]", FIRST)
    assert len(planned(copied, STUDENT, *settings)) == 1


@pytest.mark.slow
def test_a_student_can_be_a_teacher_and_a_parent(base: Path, distilled: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (second,) = trained(
        tmp_path, STUDENT.replace('"student"', '"second"').replace('"teacher"', '"student"'), "distill.steps=1"
    )
    assert second["parent_flops"] == distilled["parent_flops"] + distilled["total_flops"]
    tuned = 'schema = 1\nname = "tuned"\nworkload = "finetune"\n[from]\nstudy = "student"\n[finetune]\nsteps = 1\n'
    (row,) = trained(tmp_path, tuned)
    assert row["loss_before_nats"] == pytest.approx(distilled["validation_loss_nats"], abs=1e-6)
    _, model = load_trained(Path(distilled["attempt_dir"]))
    assert sum(value.numel() for value in model.parameters()) == distilled["params"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["model.vocab_size=300"], "it predicts 256 classes and the student 300"),
        (["distill.sequence_length=32"], "sequence_length = 32 is longer than the context of 16"),
        (["distill.top_k=300"], "distill.top_k: 300 is more than the 256 classes"),
        (
            ["distill.implementation=fused", "distill.graph=step", "distill.precision=bfloat16"],
            'distill.graph: "step": the teacher is no part of a captured step',
        ),
        (["model.family=bert", "model.params=12000"], "(gpt): it predicts something else than bert"),
        (["data.validation_fraction=0.3"], "data.validation_fraction: 0.3"),
        (["distill.teacher.where=seed == 7"], "matches 'seed == 7'; its trials have seed "),
        (
            ["distill.teacher.study=teachers"],
            "studies with results there: ",
        ),
        (["distill.teacher.study=student"], "distill.teacher.study: a study cannot start from its own trials"),
        (["distill.teacher.results=elsewhere"], 'distill.teacher: needs either study = "NAME" or results = "PATH"'),
        (["distill.teacher.step=10"], "distill.teacher.step: "),
        (["distill.soft_weight=1.5"], "distill.soft_weight"),
        (["distill.temperature=0"], "distill.temperature"),
        (["distill.batch_size=2", "distill.accumulation=3"], "distill.accumulation: 3 micro-batches"),
    ],
)
def test_each_mistake_is_one_line(base: Path, tmp_path: Path, settings: list[str], expected: str) -> None:
    (tmp_path / "results").symlink_to(base / "results")
    assert expected in refused(tmp_path, STUDENT, FIRST, *settings)


def test_a_mistake_ends_with_code_2_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.toml"
    path.write_text(STUDENT.replace('"student"', '"refused"'))
    arguments = ["run", str(path), "--results", str(base / "results"), "--set", "model.vocab_size=300"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert not (base / "results" / "refused").exists()


def test_a_study_without_a_teacher_is_refused_once(tmp_path: Path) -> None:
    text = STUDENT.replace('teacher = {study = "teacher"}\n', "seed = [0, 1]\n")
    assert "distill.teacher: missing" in refused(tmp_path, text)
    assert "distill.teacher: the workload 'training' reads no [distill]" in refused(
        tmp_path, PARENT + '[distill]\nteacher = {study = "teacher"}\n'
    )


def test_a_teacher_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    line = refused(tmp_path, STUDENT.replace('{study = "teacher"}', '"teacher"'))
    assert line.endswith("distill.teacher: expected a table (given 'teacher')")


def test_a_student_that_would_start_from_weights_is_refused(base: Path, tmp_path: Path) -> None:
    from scalebench.errors import StudyError

    (tmp_path / "results").symlink_to(base / "results")
    message = "from: the workload 'distill' starts from no weights: a trial has one parent, .* that of distill.teacher"
    with pytest.raises(StudyError, match=message):
        planned(tmp_path, STUDENT, "from.study=teacher")


def test_students_and_teachers_in_a_circle_are_refused(tmp_path: Path) -> None:
    from scalebench.errors import StudyError

    for name, other in (("one", "two"), ("two", "one")):
        text = STUDENT.replace('"student"', f'"{name}"').replace('"teacher"', f'"{other}"')
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(StudyError, match=r"distill\.teacher\.study: one → two → one"):
        ancestors(load_study(tmp_path / "one.toml"))
    with pytest.raises(StudyError, match=r"two\.toml: distill\.teacher\.study: one → two → one"):
        plan(load_study(tmp_path / "one.toml"), tmp_path / "results")
