"""Compute of sizes that no trial has: counted by the study's dials where its results store them, else by the law."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from command_support import planted, write_study
from parent_support import CHILD, PARENT, trained
from support import SMALL, child_environment

import scalebench
from scalebench import store
from scalebench.analysis.counting import Built, Counting, counting_of
from scalebench.analysis.predictions import PredictedQuantity, predict_compute, training_of
from scalebench.analysis.recipe import Recipe
from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend
from scalebench.analysis.trials import N
from scalebench.cli.commands.predict import run_predict
from scalebench.cli.commands.stored import write_report
from scalebench.cli.live_page import LivePage
from scalebench.families import FAMILIES
from scalebench.reporting.fit_tables import compute_note, predictions_table
from scalebench.reporting.strip import strip_table
from scalebench.running.dials import count_dial, dials_of
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.running.sweep import save_study, survey
from scalebench.store.plans import joined_plans

STUDY = """
schema = 1
name = "counted"
[model]
family = "gpt"
params = { geom = [2000, 60000], points = 6 }
[train]
steps = 500
batch_size = 16
sequence_length = 128
seed = [0, 1]
"""


def rows_of(planned: list[PlannedTrial]) -> list[dict[str, object]]:
    """The records that these trials would leave, of planted losses and costs."""
    rows = []
    for trial, row in zip(planned, planted(), strict=False):
        counts = trial.counts
        changes = {
            "study": "counted", "trial_id": trial.trial_id, "family": trial.trial.family, "params": counts.total,
            N: counts.non_embedding, "requested_params": trial.requested.get("params"),
            "flops_per_step": trial.flops // trial.steps, "steps": trial.steps,
            "tokens_seen": trial.steps * 16 * 128,
        }  # fmt: skip
        rows.append(row | changes)
    return rows


def frame(planned: list[PlannedTrial]) -> pd.DataFrame:
    return pd.DataFrame(rows_of(planned))


@pytest.fixture
def planned(tmp_path: Path) -> list[PlannedTrial]:
    """The trials of STUDY, whose file is counted.toml in the folder of the test."""
    (tmp_path / "counted.toml").write_text(STUDY)
    return plan(load_study(tmp_path / "counted.toml"), tmp_path)


def write_results(folder: Path, planned: list[PlannedTrial], **definition: object) -> Path:
    """Record the trials as a run does, with these keys of ``study.json``."""
    write_study(folder, rows_of(planned))
    content = json.loads((folder / "study.json").read_text())
    store.write_json(folder / "study.json", content | definition)
    return folder


def compute(command: Any, *arguments: object) -> dict[str, Any]:
    """What `predict` prints of the compute."""
    return json.loads(command("predict", *arguments, "--json")[1])["answers"]["compute"]


def series(planned: list[PlannedTrial], **definition: object) -> Series:
    """The series of these trials, of a study with these keys of ``study.json``."""
    return StudyAnalysis("counted", definition, frame(planned), count=count_dial).series[0]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_dials_of_every_family_count_what_plan_counts_up_to_a_hundred_times_the_largest_size(
    tmp_path: Path, name: str
) -> None:
    trials = plan(load_study(name), tmp_path)
    dials = dials_of(trials)
    largest = max(trial.requested["params"] for trial in trials)
    for factor in (1, 10, 100):
        further = plan(load_study(name, [f"model.params={factor * largest:g}"]), tmp_path)
        for trial in further:
            built = [count_dial(dial, trial.requested["params"]) for dial in dials]
            assert (trial.counts.non_embedding, trial.flops / trial.steps) in [
                (each.params, each.flops_per_step) for each in built if each
            ]


@pytest.mark.parametrize("params", [10_000, 600_000, 6_000_000])
def test_compute_is_what_plan_gives_at_that_size(tmp_path: Path, planned, params: int) -> None:
    answer = predict_compute(series(planned, dials=dials_of(planned)), params, 500)
    trial, _ = plan(load_study(tmp_path / "counted.toml", [f"model.params={params}"]), tmp_path)
    assert (answer.value, answer.by) == (trial.flops, "counted")
    assert (answer.low, answer.high, answer.beyond, answer.hold_out_percent) == (None,) * 4
    assert f"gpt with {trial.counts.non_embedding:,} parameters" in answer.basis
    assert predict_compute(series(planned, dials=dials_of(planned)), params, 5_000).value == 10 * trial.flops


@pytest.mark.parametrize("family", ["gpt", "moe"])
@pytest.mark.parametrize("params", [10_000, 61_000, 600_000])
def test_steps_for_tokens_per_parameter_are_those_of_a_plan(tmp_path: Path, family: str, params: int) -> None:
    """The trials' own tokens per parameter differ from the file's, by rounding to whole steps."""
    text = STUDY.replace("steps = 500", "tokens_per_param = 7").replace('"gpt"', f'"{family}"')
    (tmp_path / "counted.toml").write_text(text)
    planned = plan(load_study(tmp_path / "counted.toml"), tmp_path)
    active = [trial.counts.active for trial in planned]
    definition = {"dials": dials_of(planned), "fields": {"tokens_per_param": [7.0]}}
    own = StudyAnalysis("counted", definition, frame(planned).assign(params_active=active), count=count_dial).series[0]
    trial, _ = plan(load_study(tmp_path / "counted.toml", [f"model.params={params}"]), tmp_path)
    size = trial.counts.non_embedding
    data, steps = training_of(own, size)
    assert (data, steps) == (trial.steps * 16 * 128, trial.steps)
    assert predict_compute(own, size, steps).value == trial.flops


def test_steps_for_requested_tokens_are_whole(tmp_path: Path, planned) -> None:
    own = series(planned, dials=dials_of(planned))
    trial, _ = plan(load_study(tmp_path / "counted.toml", ["model.params=600000", "train.tokens=1e6"]), tmp_path)
    assert training_of(own, 600_000, 1e6) == (1e6, trial.steps)


def test_trials_of_other_steps_than_their_file_gives_keep_their_own_recipe(planned) -> None:
    (given,) = {Recipe.of(frame(planned), budget) for budget in (None, 7.0)}
    assert given.budget is None


def test_results_of_an_older_version_are_not_counted_and_say_why(planned) -> None:
    counting = series(planned).counting
    assert counting.at(6e5) is None
    assert "do not store how model.params sets the model" in counting.reason


@pytest.mark.slow
def test_results_of_an_older_version_have_the_compute_of_the_law(tmp_path: Path, planned) -> None:
    answer = predict_compute(series(planned), 6e5, 500)
    trial, _ = plan(load_study(tmp_path / "counted.toml", ["model.params=6e5"]), tmp_path)
    assert answer.by == "law"
    assert answer.value == pytest.approx(trial.flops, rel=0.3)
    assert answer.low < answer.value < answer.high  # type: ignore[operator]
    assert "do not store how model.params sets the model" in answer.basis


def test_compute_of_an_open_number_of_steps_is_refused(planned) -> None:
    answer = predict_compute(series(planned, dials=dials_of(planned)), 6e5, None)
    assert (answer.value, answer.by) == (None, None)
    assert "number of steps is open" in answer.reason


@pytest.mark.slow
def test_predict_and_plan_print_the_same_compute(command, tmp_path: Path, planned) -> None:
    folder = write_results(tmp_path / "results", planned, dials=dials_of(planned))
    (size,) = json.loads(command("plan", "counted.toml", "--set", "model.params=6e5", "--json")[1])["sizes"]
    answer = compute(command, folder, "--params", "6e5")
    assert (answer["value"], answer["by"]) == (size["flops_per_trial"], "counted")
    out = command("predict", folder, "--params", "6e5")[1]
    (line,) = [line for line in out.splitlines() if line.startswith("compute ")]
    assert line.split()[-1] == "counted"
    assert "comes from a law" not in out


@pytest.mark.slow
def test_predict_says_that_compute_of_older_results_comes_from_a_law(command, tmp_path: Path, planned) -> None:
    folder = write_results(tmp_path / "results", planned)
    assert compute(command, folder, "--params", "6e5")["by"] == "law"
    out = " ".join(command("predict", folder, "--params", "6e5")[1].split())
    assert "compute comes from a law" in out
    assert "compute: by the law, not counted (these results do not store" in out


def test_every_page_and_prediction_counts(tmp_path: Path, planned, monkeypatch) -> None:
    folder = write_results(tmp_path / "results", planned, dials=dials_of(planned))
    counts: list[Any] = []

    def keep(subject: Any, *_: object, **_options: object) -> Path:
        counts.append(subject.count if isinstance(subject, Series) else subject[0].count)
        return tmp_path / "page.html"

    monkeypatch.setattr("scalebench.reporting.write", keep)
    monkeypatch.setattr("scalebench.analysis.predictions.predict_size", keep)
    monkeypatch.setattr("scalebench.analysis.in_use.predict_size", keep)
    scalebench.predict(folder, 6e5)
    scalebench.report(folder, tmp_path / "page.html")
    LivePage(folder).write()
    write_report([folder], tmp_path / "page.html", pictures=False)
    with pytest.raises(AttributeError, match="quantities"):
        run_predict(folder, 6e5, None, {}, None, as_json=False)
    assert counts == [count_dial] * 5


def test_a_file_of_a_users_own_is_not_run_to_count(command, tmp_path: Path, planned) -> None:
    own, mark = tmp_path / "own.py", tmp_path / "it-ran"
    own.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    dial = dials_of(planned)[0] | {"family": str(own)}
    assert count_dial(dial, 1e5) is None
    trials = frame(planned).assign(family=str(own))
    for stored in ([], [dial]):
        counting = counting_of(trials, {"dials": stored}, count_dial)
        assert counting.at(6e5) is None
    assert f"your own file {own}" in counting_of(trials, {"dials": []}, count_dial).reason
    assert not mark.exists()


def test_trials_of_a_users_own_family_store_no_dial(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(Path(FAMILIES["mlp"].__file__).read_text())  # type: ignore[attr-defined]
    (tmp_path / "own.toml").write_text(SMALL.replace('"mlp"', f'"{tmp_path / "own.py"}"'))
    assert dials_of(plan(load_study(tmp_path / "own.toml"), tmp_path)) == []
    (tmp_path / "own.toml").write_text(SMALL)
    assert dials_of(plan(load_study(tmp_path / "own.toml"), tmp_path)) == [
        {"family": "mlp", "fields": {"depth": 1}, "sequence_length": None, "batch_size": 32}
    ]


def test_other_workloads_and_sizes_without_params_store_no_dial(tmp_path: Path) -> None:
    for name in ("inference", "depth-residual"):
        trials = plan(load_study(name), tmp_path)
        assert dials_of(trials) == []
    reason = counting_of(frame(trials), {"dials": []}, count_dial).reason
    assert "does not train models whose size it sets by model.params" in reason


def test_a_child_is_counted_by_the_dial_of_its_parents_study(tmp_path: Path) -> None:
    """Its dial has the data of the child's own steps, and the fields of its parents' study: its own sets no params."""
    trained(tmp_path, PARENT)
    parent = survey(load_study(tmp_path / "study.toml"), tmp_path / "results")
    save_study(parent, load_study(tmp_path / "study.toml"))
    (tmp_path / "child.toml").write_text(CHILD)
    child = survey(load_study(tmp_path / "child.toml", ["train.batch_size=8"]), tmp_path / "results")
    save_study(child, load_study(tmp_path / "child.toml", ["train.batch_size=8"]))
    stored = store.read_study(child.study_dir, [])
    (dial,) = stored["dials"]
    assert (dial["batch_size"], dial["sequence_length"]) == (8, 16)
    built = counting_of(frame(child.planned), stored, count_dial).at(30_000)
    (large,) = plan(load_study(tmp_path / "study.toml", ["model.params=30000"]), tmp_path)
    assert built is not None
    assert built.flops_per_step == 2 * large.flops / large.steps


def test_a_dial_that_does_not_give_the_flops_of_every_trial_does_not_count(planned) -> None:
    """As after a change of what a family counts, or where the depth of some trials was fixed."""
    trials, dials = frame(planned), dials_of(planned)
    assert counting_of(trials, {"dials": dials}, count_dial).at(6e5) is not None
    for wrong in (
        [dials[0] | {"batch_size": 17}],
        [dials[0] | {"fields": dials[0]["fields"] | {"depth": 3}}],
        [dials[0] | {"fields": {"vocab_size": 256}}],
    ):
        counting = counting_of(trials, {"dials": wrong}, count_dial)
        assert counting.at(6e5) is None
        assert "counting gives other FLOPs than these trials recorded" in counting.reason
    trials.loc[0, "flops_per_step"] += 1
    assert counting_of(trials, {"dials": dials}, count_dial).at(6e5) is None


def test_steps_of_a_run_continued_with_other_ones_are_not_counted(planned) -> None:
    """Its data are those of both runs, and a step of its parent took other data, time and FLOPs."""
    trials = frame(planned).assign(tokens_seen=1e6)
    whole = trials.assign(first_step=100, parent_flops=100 * trials["flops_per_step"])
    assert Recipe.of(whole[:1]).per_step == pytest.approx(1e6 / (100 + whole["steps"].iloc[0]))
    for other in (whole.assign(parent_flops=50 * trials["flops_per_step"]), whole.drop(columns="parent_flops")):
        assert Recipe.of(other[:1]).per_step is None


def test_dials_that_give_different_models_at_a_size_do_not_count() -> None:
    def count(dial: Any, setting: float) -> Built:
        return Built("gpt", setting, setting, dial["slope"] * max(setting, 1e5))

    same, other = {"slope": 6.0}, {"slope": 6.5}
    assert Counting([same, same], count).at(1e6) == Built("gpt", 1e6, 1e6, 6e6)
    assert Counting([same, other], count).at(1e6) is None


def test_experts_are_counted_at_their_size_and_not_at_that_of_the_dial(tmp_path: Path) -> None:
    """The dial of moe is the parameters that a token passes through, the size of a series all of them."""
    trials = plan(load_study("moe"), tmp_path)
    built = Counting(dials_of(trials), count_dial).at(3e6)
    assert built is not None
    assert built.params == pytest.approx(3e6, rel=0.01)
    assert built.setting == pytest.approx(1e6, rel=0.1)
    (same,) = {
        trial.flops // trial.steps for trial in plan(load_study("moe", [f"model.params={built.setting}"]), tmp_path)
    }
    assert built.flops_per_step == same


@pytest.mark.parametrize(
    "changed",
    [
        {"family": "no such"}, {"fields": {}}, {"fields": {"vocab_size": 256, "context": 128, "wide": 3}},
        {"fields": {"vocab_size": -1, "context": 128}}, {"fields": {"vocab_size": 2**40, "context": 128}},
        {"fields": {"vocab_size": "256", "context": 128}}, {"batch_size": 2**40},
    ],
)  # fmt: skip
def test_a_dial_of_another_version_counts_nothing(planned, changed: dict[str, Any]) -> None:
    (dial,) = dials_of(planned)
    assert count_dial(dial, 1e5) is not None
    assert count_dial(dial | changed, 1e5) is None


@pytest.mark.parametrize("setting", [1.0, 1e16, 1e300, float("inf"), float("nan")])
def test_a_size_out_of_reach_is_not_counted(planned, setting: float) -> None:
    assert count_dial(dials_of(planned)[0], setting) is None


def test_a_large_size_is_counted_as_its_record_has_it(planned) -> None:
    """FLOPs beyond 2^53 are rounded in a table."""
    (dial,) = dials_of(planned)
    built = count_dial(dial | {"batch_size": 512}, 1e12)
    assert built is not None
    assert built.flops_per_step > 2**53
    trials = pd.DataFrame({N: [built.params], "requested_params": [1e12], "flops_per_step": [built.flops_per_step]})
    assert counting_of(trials, {"dials": [dial | {"batch_size": 512}]}, count_dial).at(2e12) is not None


def test_a_study_is_saved_with_its_dials_the_same_each_time_and_an_older_folder_gets_them(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    study = load_study(tmp_path / "small.toml")

    def save() -> bytes:
        with patch("scalebench.running.sweep.command_line", lambda: "scalebench run small"):
            save_study(survey(study, tmp_path / "results"), study)
        return (tmp_path / "results" / "small" / "study.json").read_bytes()

    first = save()
    assert save() == first
    content = store.read_study(tmp_path / "results" / "small", [])
    older = {name: value for name, value in content.items() if name not in ("dials", "checksum")}
    store.write_study(tmp_path / "results" / "small", older)
    sweep = survey(study, tmp_path / "results")
    assert (len(sweep.missing), sweep.damaged) == (4, [])
    assert save() == first


def test_plans_that_are_joined_have_the_dials_of_both() -> None:
    small, large = ({"family": "gpt", "fields": {}, "sequence_length": 8, "batch_size": size} for size in (4, 8))
    plans = [{"planned": ["a"], "dials": [small]}, {"planned": ["b"], "dials": [small, large]}, {"planned": ["c"]}]
    assert joined_plans(plans[0], plans[1])["dials"] == [small, large]
    assert joined_plans(plans[1], plans[0])["dials"] == [small, large]
    assert joined_plans(plans[2], plans[0])["dials"] == joined_plans(plans[0], plans[2])["dials"] == [small]
    assert "dials" not in joined_plans(plans[2], plans[2])


@pytest.mark.parametrize(
    "dials",
    ["gpt", [3], [{"family": "gpt"}], [{"family": 3, "fields": {}, "batch_size": 4}],
     [{"family": "gpt", "fields": {"depth": []}, "batch_size": 4}],
     [{"family": "gpt", "fields": {}, "batch_size": "4"}],
     [{"family": "gpt", "fields": {}, "batch_size": 4, "sequence_length": 0.5}]],
)  # fmt: skip
def test_dials_of_the_wrong_shape_are_damage(tmp_path: Path, dials: object) -> None:
    store.write_study(tmp_path, {"name": "x", "dials": dials})
    damaged: list[str] = []
    assert store.read_study(tmp_path, damaged) == {}
    assert "dials: not what a study has there" in damaged[0]


@pytest.mark.slow
def test_the_report_says_whether_compute_is_counted(planned) -> None:
    """In the caption of the strip and of the table of projections."""
    for definition, sentence in (({"dials": dials_of(planned)}, "Compute is counted"), ({}, "Compute is by the law")):
        of_sizes = series(planned, **definition)
        strip = strip_table(of_sizes)
        assert strip is not None
        for table in (strip, predictions_table([of_sizes])):
            assert table.caption.count("Compute ") == table.caption.count(sentence) == 1
    assert "do not store how model.params sets the model" in table.caption


def test_a_caption_of_counted_and_fitted_compute_says_how_to_tell_them_apart() -> None:
    counted = PredictedQuantity("compute", "FLOP", 1.0, counted=True)
    fitted = PredictedQuantity("compute", "FLOP", 1.0, low=0.9, high=1.1, trend=Trend(None, ""))
    refused = PredictedQuantity("compute", "FLOP", reason="open")
    assert compute_note([refused]) == compute_note([]) == ""
    assert "where it has no interval" in compute_note([counted, fitted])
    assert compute_note([fitted, refused], ["", "why"]).endswith("not counted: why.")


@pytest.mark.slow
def test_counting_waits_for_no_torch(planned) -> None:
    code = (
        "import sys; from scalebench.running.dials import count_dial; "
        f"assert count_dial({dials_of(planned)[0]!r}, 1e5); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment())
