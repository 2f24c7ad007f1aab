"""[sample]: evenly spread values of several fields at once, of which a longer study repeats the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from parent_support import planned, refused
from scipy.stats import qmc

from scalebench import store
from scalebench.cli.commands.schema import study_schema
from scalebench.running.planning import load_study
from scalebench.running.sweep import save_study, survey
from scalebench.study import Study
from scalebench.study.file import read_toml
from scalebench.study.sampling import fractions_of

HEAD = """
schema = 1
name = "s"
[model]
family = "mlp"
params = [1000, 4000]
[train]
steps = 5
seed = [0, 1]
[sample]
"""
RATES = "train.learning_rate = { log = [1e-4, 1e-1] }\n"
OTHERS = "train.weight_decay = { linear = [0, 1] }\ntrain.batch_size = { log = [1e1, 1e2] }\n"
SAMPLE = HEAD + "points = 8\n" + RATES + OTHERS


def study_of(tmp_path: Path, text: str, *settings: str) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_study(path, settings)


def drawn(study: Study) -> dict[str, tuple[Any, ...]]:
    assert study.sampled is not None
    return study.sampled.axes()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dimensions", [1, 2])
def test_any_sixteen_points_have_one_in_each_cell_of_as_many(dimensions: int, seed: int) -> None:
    points = fractions_of(48, dimensions, seed).reshape(3, 16, dimensions)
    cells = 16 if dimensions == 1 else 4
    for block in points:
        numbers = (block * cells).astype(int) @ cells ** np.arange(dimensions)
        assert sorted(numbers) == list(range(16))


@pytest.mark.parametrize("dimensions", [2, 3, 5])
def test_points_are_spread_as_evenly_as_those_of_scipy_and_better_than_at_random(dimensions: int) -> None:
    def discrepancy(draw: Any) -> float:
        return float(np.mean([qmc.discrepancy(draw(seed)) for seed in range(20)]))

    ours = discrepancy(lambda seed: fractions_of(32, dimensions, seed))
    assert ours < 1.2 * discrepancy(lambda seed: qmc.Sobol(dimensions, rng=seed).random_base2(5))
    assert ours < 0.3 * discrepancy(lambda seed: np.random.default_rng(seed).random((32, dimensions)))


def test_the_values_of_a_study_never_change(tmp_path: Path) -> None:
    values = drawn(study_of(tmp_path, SAMPLE, "sample.points=3"))
    assert values == {
        "train.batch_size": (70, 22, 12),
        "train.learning_rate": (0.01879, 0.0005941, 0.003341),
        "train.weight_decay": (0.4206, 0.9206, 0.1706),
    }
    assert drawn(study_of(tmp_path, SAMPLE, "sample.points=3", "sample.seed=1")) != values


def test_more_points_leave_the_trials_of_the_first_as_they_are(tmp_path: Path) -> None:
    few, many = (planned(tmp_path, SAMPLE, f"sample.points={points}") for points in (5, 16))
    assert (len(few), len(many)) == (2 * 2 * 5, 2 * 2 * 16)
    assert {trial.trial_id for trial in few} < {trial.trial_id for trial in many}


def test_the_order_of_the_fields_in_the_file_changes_nothing(tmp_path: Path) -> None:
    lines = SAMPLE.splitlines()
    turned = "\n".join([*lines[:-3], *reversed(lines[-3:])])
    assert drawn(study_of(tmp_path, turned)) == drawn(study_of(tmp_path, SAMPLE))


def test_values_are_in_their_range_and_of_the_kind_that_the_field_takes(tmp_path: Path) -> None:
    depths = "model.depth = { linear = [1, 3] }\n"
    lists = 'train.optimizer = ["adamw", "lion"]\ntrain.warmup_steps = { log2 = [0, 2] }\n'
    values = drawn(study_of(tmp_path, SAMPLE + lists + depths, "sample.points=64"))
    rates, decays, batches = (values[f"train.{name}"] for name in ("learning_rate", "weight_decay", "batch_size"))
    assert 1e-4 <= min(rates) < 2e-4
    assert 5e-2 < max(rates) <= 1e-1
    assert abs(np.median(np.log10(rates)) + 2.5) < 0.1  # evenly in the logarithm
    assert all(type(decay) is float for decay in decays)
    assert len(set(decays)) > 60  # although its ends are written 0 and 1
    assert all(type(batch) is int and 10 <= batch <= 100 for batch in batches)
    assert {values["train.optimizer"].count(name) for name in ("adamw", "lion")} == {32}
    assert set(values["train.warmup_steps"]) == {1, 2, 4}
    assert set(values["model.depth"]) == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (RATES, "sample.points: missing; as in points = 16"),
        ("points = 0\n" + RATES, "sample.points: "),
        ("points = 4\nseed = -1\n" + RATES, "sample.seed: "),
        ("points = 4\n", "sample: needs at least one field"),
        ("points = 4\ntrain.learning_rate = 0.1\n", "sample.train.learning_rate: one value is no range"),
        ("points = 4\ntrain.learning_rate = { log = [0, 1] }\n", "sample.train.learning_rate: log needs positive ends"),
        ("points = 4\ntrain.learning_rate = { log = [1, 1] }\n", "sample.train.learning_rate: log needs two different"),
        ("points = 4\ntrain.learning_rate = { log = [1] }\n", "sample.train.learning_rate: log needs two numbers"),
        ("points = 4\ntrain.learning_rat = { log = [1, 2] }\n", "did you mean 'learning_rate'?"),
        ("points = 1\ntrain.weight_decay = { linear = [-2, -1] }\n", "sample.train.weight_decay: "),
        ("points = 4\ntrain.seed = [0, 1]\n", "sample.train.seed: set elsewhere as well"),
        ("points = 4\nprune.density = [0.5, 0.9]\n", "sample.prune.density: the workload 'training' reads no [prune]"),
    ],
)
def test_a_bad_sample_is_one_line_with_the_field(tmp_path: Path, text: str, line: str) -> None:
    assert line in refused(tmp_path, HEAD + text)


def test_a_range_outside_sample_is_refused_with_where_it_belongs(tmp_path: Path) -> None:
    text = HEAD.replace("steps = 5", "steps = 5\nlearning_rate = { log = [1e-4, 1e-1] }").replace("[sample]\n", "")
    assert "for [sample]" in refused(tmp_path, text)


def test_sampled_fields_are_tuned_unless_the_file_says_what_is(tmp_path: Path) -> None:
    longer = (
        SAMPLE.replace("steps = 5\n", "").replace("seed = [0, 1]\n", "")
        + "train.steps = [5, 10]\ntrain.seed = [0, 9]\n"
    )
    assert study_of(tmp_path, SAMPLE).tuned == ("batch_size", "learning_rate", "weight_decay")
    assert study_of(tmp_path, longer).tuned == ("batch_size", "learning_rate", "weight_decay")
    assert study_of(tmp_path, SAMPLE, "fit.best_over=[]").tuned == ()
    assert study_of(tmp_path, SAMPLE, "fit.best_over=[learning_rate]").tuned == ("learning_rate",)
    study = study_of(tmp_path, SAMPLE)
    sweep = survey(study, tmp_path / "results")
    save_study(sweep, study)
    assert store.read_study(sweep.study_dir, [])["fit"]["best_over"] == list(study.tuned)


def test_an_editor_accepts_ranges_in_sample_only(tmp_path: Path) -> None:
    check = jsonschema.Draft202012Validator(study_schema())
    for text, valid in (
        (SAMPLE, True),
        (SAMPLE.replace("learning_rate", "learning_rat"), False),
        (SAMPLE.replace("{ log = [1e-4, 1e-1] }", "0.1"), False),
        (HEAD.replace("[sample]\n", "weight_decay = { log = [1e-4, 1e-1] }\n"), False),
    ):
        (tmp_path / "study.toml").write_text(text)
        assert check.is_valid(read_toml(tmp_path / "study.toml")) == valid, text
