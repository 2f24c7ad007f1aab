"""The study file: axes, every error at once, and the identity of a trial."""

from __future__ import annotations

import json
import math
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalebench.errors import StudyError
from scalebench.study import DataSpec, Parent, Study, Trial, trial_id
from scalebench.study.file import override, parse_study, read_toml
from scalebench.workloads import WORKLOADS, read_trial
from scalebench.workloads.training_spec import TrainSpec

HEAD = 'schema = 1\nname = "s"\n[model]\nfamily = "gpt"\n'


def parse(text: str) -> tuple[Study | None, list[str]]:
    return parse_study(tomllib.loads(text), WORKLOADS)


def sound(text: str) -> Study:
    study, lines = parse(text)
    assert not lines
    assert study is not None
    return study


def test_axes_multiply_and_scalars_stand_for_one_value() -> None:
    study = sound(HEAD + "params = [1e4, 1e5]\n[train]\nseed = [0, 1, 2]\nsteps = 7")
    points = list(study.points())
    assert [(point["model.params"], point["train.seed"]) for point in points] == [
        (size, seed) for size in (1e4, 1e5) for seed in (0, 1, 2)
    ]
    assert {point["train.steps"] for point in points} == {7}


@given(st.floats(1e-3, 1e6), st.floats(1.1, 1e4), st.integers(2, 40))
def test_a_geometric_axis_has_equal_ratios_and_the_ends_asked_for(low: float, ratio: float, points: int) -> None:
    study = sound(HEAD + f"params = {{ geom = [{low!r}, {low * ratio!r}], points = {points} }}")
    values = study.model.params
    assert values is not None
    assert len(values) == points
    assert math.isclose(values[0], low, rel_tol=1e-11)
    assert math.isclose(values[-1], low * ratio, rel_tol=1e-11)
    steps = [later / earlier for earlier, later in pairwise(values)]
    assert max(steps) / min(steps) - 1 < 1e-9


def test_a_log2_axis_of_whole_exponents_gives_whole_powers() -> None:
    assert sound(HEAD + "[train]\nbatch_size = { log2 = [3, 6] }").train.batch_size == (8, 16, 32, 64)
    assert sound(HEAD + "[train]\nsteps = 1e3").train.steps == (1000,)


def test_zipped_axes_advance_together_and_excluded_points_are_gone() -> None:
    study = sound(
        HEAD + "[train]\nseed = [0, 1]\n[[zip]]\nmodel.width = [8, 16]\ntrain.batch_size = [4, 2]\n"
        "[[exclude]]\nmodel.width = 16\ntrain.seed = 1"
    )
    rows = [(point["model.width"], point["train.batch_size"], point["train.seed"]) for point in study.points()]
    assert sorted(rows) == [(8, 4, 0), (8, 4, 1), (16, 2, 0)]


@pytest.mark.parametrize("table", ["model", "data", "train", "inference", "from", "fit", "run"])
def test_a_value_in_place_of_a_table_is_one_error(table: str) -> None:
    raw = tomllib.loads(HEAD)
    override(raw, [f"{table}=3"], WORKLOADS)
    _, lines = parse_study(raw, WORKLOADS)
    assert [line for line in lines if not line.startswith("model.family: missing")] == [
        f"{table}: expected a table (given 3)"
    ]


@pytest.mark.parametrize(
    ("key", "meant"), [("parents", "from"), ("zipped", "zip"), ("excluded", "exclude"), ("schema_version", "schema")]
)
def test_a_field_has_one_name_in_a_file(key: str, meant: str) -> None:
    _, (line,) = parse_study(tomllib.loads(HEAD) | {key: {"study": "parent"}}, WORKLOADS)
    assert line.startswith(f"{key}: unknown key {key!r}")
    assert f"{meant}," in line or f"mean {meant!r}" in line


def test_all_errors_are_reported_at_once_with_key_value_and_allowed_values() -> None:
    _, lines = parse(
        HEAD + "params = [1e4, -1]\n"
        '[train]\nstepz = 3\nbatch_size = [16, 0, "a"]\nlearning_rate = "fast"\nschedule = "cosin"\nseed = []\n'
        "[data]\nvalidation_fraction = 2.0\n[fit]\nholdout = 3\n[oven]\nheat = 1"
    )
    by_key = {line.partition(":")[0]: line for line in lines}
    assert set(by_key) == {
        "model.params[1]", "train.stepz", "train.batch_size[1]", "train.batch_size[2]", "train.learning_rate",
        "train.schedule", "train.seed", "data.validation_fraction", "fit.holdout", "oven",
    }  # fmt: skip
    assert "did you mean 'steps'?" in by_key["train.stepz"]
    assert "did you mean 'cosine'? (known: constant, linear, cosine, wsd)" in by_key["train.schedule"]
    assert by_key["train.batch_size[1]"].endswith("(given 0)")
    assert "'largest' or 'none'" in by_key["fit.holdout"]
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("text", "key", "word"),
    [
        ('name = "s"\n[model]\nfamily = "gpt"', "schema", "missing"),
        ('schema = 2\nname = "s"\n[model]\nfamily = "gpt"', "schema", "1"),
        ('schema = 1\nname = "a/b"\n[model]\nfamily = "gpt"', "name", "expected letters, digits"),
        ('schema = 1\nname = "s"\n[model]\nparams = 1e4', "model.family", "missing"),
        (HEAD + 'params = 1e4\nsize = "gpt2"', "model.size", "exclude each other"),
        (HEAD + "[train]\nsteps = 1\ntokens = 2", "train.tokens", "only one of"),
        (HEAD + "[train]\nsteps = 1.5", "train.steps", "integer"),
        (HEAD + "[train]\nsteps = true", "train.steps", "integer"),
        (HEAD + "params = { geom = [1, 2, 3], points = 4 }", "model.params", "geom"),
        (HEAD + "params = { geom = [1, 20] }", "model.params", "points"),
        (HEAD + "params = { geom = [0, 20], points = 3 }", "model.params", "positive"),
        (HEAD + "params = { line = [1, 20] }", "model.params", "an axis is"),
        (HEAD + "params = inf", "model.params", "finite"),
        (HEAD + "[[zip]]\nmodel.width = [1, 2]\ntrain.seed = [1, 2, 3]", "zip[0]", "equal lengths"),
        (HEAD + "width = 3\n[[zip]]\nmodel.width = [1, 2]\ntrain.seed = [1, 2]", "zip[0].model.width", "elsewhere"),
        (HEAD + "[[zip]]\ntrain.sed = [1, 2]", "zip[0].train.sed", "did you mean 'seed'"),
    ],
)
def test_each_mistake_is_one_line_with_its_key(text: str, key: str, word: str) -> None:
    _, lines = parse(text)
    assert len([line for line in lines if line.startswith(f"{key}:")]) == 1
    assert any(word in line for line in lines)


def test_settings_override_fields_and_bad_ones_are_refused() -> None:
    raw = tomllib.loads(HEAD)
    override(raw, ["train.seed=[1,2]", "train.schedule=cosine", "model.params = 1e4"], WORKLOADS)
    study, _ = parse_study(raw, WORKLOADS)
    assert study is not None
    assert (study.train.seed, study.train.schedule, study.model.params) == ((1, 2), ("cosine",), (1e4,))
    for bad in ("train.seed", "=3", "name.x=3"):
        with pytest.raises(StudyError, match="--set"):
            override(raw, [bad], WORKLOADS)


def test_a_setting_replaces_the_fields_that_it_excludes(command, tmp_path: Path) -> None:
    raw = tomllib.loads(HEAD + "params = 1e4\n[train]\nsteps = 5\nseed = 3")
    override(raw, ["train.tokens=4096", "model.size=gpt2"], WORKLOADS)
    assert raw["train"] == {"tokens": 4096, "seed": 3}
    assert (raw["model"]["size"], "params" in raw["model"]) == ("gpt2", False)
    override(raw, ["train.steps=[1,2]", "train.flops=9"], WORKLOADS)  # both named here: a mistake, which is reported
    study, lines = parse_study(raw, WORKLOADS)
    assert study is None
    assert any("only one of" in line for line in lines)
    (tmp_path / "both.toml").write_text(HEAD + "params = 1e4\n[train]\nsteps = 5\ntokens = 9")
    code, _, err = command("plan", "both.toml")
    assert code == 2
    assert "train.tokens: only one of steps, tokens" in err
    assert command("plan", "both.toml", "--set", "train.tokens=300k")[0] == 0


def test_numbers_of_settings_may_have_suffixes(command, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(HEAD + "[train]\nsteps = 2")
    code, out, err = command("plan", "s.toml", "--set", "model.params=[4k, 1.6e4, 0.1M]", "--set", "title=2B or 3M")
    assert code == 0, err
    assert "model.params (3)" in out
    (line,) = command("plan", "s.toml", "--set", "model.params=1X")[2].splitlines()
    assert "given '1X'" in line


@pytest.mark.parametrize("size", ["1M", "1.5 B"])
def test_a_number_that_is_none_in_toml_is_refused_with_how_to_write_it(command, tmp_path: Path, size: str) -> None:
    (tmp_path / "s.toml").write_text(HEAD + f'params = "{size}"\n[train]\nsteps = 2')
    (line,) = command("plan", "s.toml")[2].splitlines()
    assert f"(given {size!r}; in a study file a number is written 1e6 or 1_000_000)" in line


def test_files_that_are_not_toml_are_refused_by_name(tmp_path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("a = = 3")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (broken, binary, tmp_path / "absent.toml", tmp_path):
        with pytest.raises(StudyError, match=path.name):
            read_toml(path)


TRAIN = {
    "steps": 10, "batch_size": 4, "accumulation": 1, "checkpointing": False, "sequence_length": 16,
    "optimizer": "adamw", "learning_rate": 0.01, "schedule": "wsd", "warmup_steps": 2, "decay_fraction": 0.8,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95,
    "momentum": 0.9, "gradient_clip": 1.0, "precision": "float32", "implementation": "eager", "seed": 0,
}  # fmt: skip
INFERENCE = {
    "batch_size": 1, "sequence_length": 8, "new_tokens": 4, "weight_dtype": "float32", "temperature": 0.0, "top_k": 0,
    "top_p": 1.0, "beams": 1, "repeats": 3, "warmups": 1, "implementation": "eager", "seed": 0,
}  # fmt: skip
DATA = {"source": "stdlib", "validation_fraction": 0.2, "validation_samples": 64, "noise_std": 0.5, "sha256": "ab"}


def trial(model: dict[str, int], **changes: object) -> Trial:
    train = TRAIN | {key: value for key, value in changes.items() if key in TRAIN}
    data = DATA | {key: value for key, value in changes.items() if key in DATA}
    kind = str(changes.get("device_kind", "cpu"))
    workload, parent = str(changes.get("workload", "training")), changes.get("parent")
    return Trial(
        workload=workload, family="gpt", model=model, spec=TrainSpec(**train), data=DataSpec(**data), device_kind=kind,
        parent=parent,
    )  # fmt: skip


def test_the_identity_does_not_depend_on_order_and_changes_with_every_field() -> None:
    base = trial_id(trial({"width": 8, "depth": 2}))
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert trial_id(trial({"depth": 2, "width": 8})) == base
    changed = [
        trial({"width": 9, "depth": 2}),
        *(
            trial({"width": 8, "depth": 2}, **{name: value})
            for name, value in {
                "device_kind": "cuda", "workload": "other", "parent": Parent(weights_sha256="ab"),
            }.items()
        ),
        trial({"width": 8, "depth": 2}, parent=Parent(weights_sha256="ab", state_sha256="cd")),
    ]  # fmt: skip
    for name, value in (TRAIN | DATA).items():
        other = value + "x" if isinstance(value, str) else not value if isinstance(value, bool) else value + 1
        changed.append(trial({"width": 8, "depth": 2}, **{name: other}))
    assert len({base, *map(trial_id, changed)}) == len(changed) + 1


def test_other_validation_samples_are_another_trial(monkeypatch) -> None:
    """And only where they are other ones: the first way of drawing them is not in the id."""
    base = trial_id(plain := trial({"width": 8}))
    kind = plain.data.source.partition(":")[0]
    for draws, same in (({}, True), ({kind: 1}, True), ({"other": 2}, True), ({kind: 2}, False)):
        monkeypatch.setattr("scalebench.study.trials.VALIDATION_DRAWS", draws)
        assert (trial_id(plain) == base) is same


def test_the_identity_survives_being_written_and_read() -> None:
    written = trial({"width": 8}).model_dump_json()
    assert trial_id(Trial.model_validate_json(written)) == trial_id(trial({"width": 8}))
    assert read_trial(json.loads(written)) == trial({"width": 8})


def test_trials_of_schema_1_are_read_as_what_they_were() -> None:
    old = trial({"width": 8}).model_dump()
    spec = {name: old.pop(name) for name in ("workload", "spec", "parent")}["spec"]
    for train, inference in ((spec, None), (None, INFERENCE)):
        old_trial = read_trial({**old, "train": train, "inference": inference, "schema_version": 1})
        assert old_trial.workload == ("training" if train else "inference")
        assert old_trial.spec.model_dump() == (train or inference)
