"""A study that is edited, narrowed or fed other data: what no longer belongs is kept apart, and nothing vanishes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import SMALL, edit_record

from scalebench import store
from scalebench.analysis.study import analyse
from scalebench.cli.commands import sweeps
from scalebench.cli.commands.watch import StudyProgress, study_progress
from scalebench.data import open_data, open_source
from scalebench.running.claims import Observer
from scalebench.running.planning import load_study
from scalebench.running.sweep import save_study, survey
from scalebench.store.plans import joined_plans


def saved(folder: Path, *settings: str, text: str = SMALL, finish: int = 99) -> dict[str, Any]:
    """Plan a study as a run does, record its first ``finish`` missing trials as ok, and return its ``study.json``."""
    (folder / "small.toml").write_text(text)
    study = load_study(folder / "small.toml", settings)
    sweep = survey(study, folder / "results")
    save_study(sweep, study)
    for planned in sweep.missing[:finish]:
        attempt = store.new_attempt(sweep.study_dir, planned.trial_id)
        row = {"trial_id": planned.trial_id, "study": study.name, "status": "ok", "params": planned.counts.total}
        store.write_record(attempt, row | {"validation_loss_nats": 1.0, "steps": planned.steps})
    return store.read_study(sweep.study_dir, [])


def status(command, folder: Path) -> dict[str, Any]:
    return json.loads(command("status", folder / "results", "--json")[1])


def test_trials_that_a_narrower_setting_leaves_out_stay_missing(tmp_path: Path, command) -> None:
    saved(tmp_path, finish=1)
    saved(tmp_path, "train.seed=0", finish=1)
    assert status(command, tmp_path)["studies"] == {"small": {"ok": 2, "missing": 2}}
    assert command("status", tmp_path / "results")[0] == 1


def test_joined_plans_keep_the_flops_of_every_trial(tmp_path: Path) -> None:
    first = saved(tmp_path, "train.seed=0")["planned"]
    both = saved(tmp_path, "train.seed=[1, 2]")["planned"]
    assert both[:2] == first
    assert len(both) == 6
    assert all(trial["flops"] > 0 for trial in both)
    folders = [tmp_path / "results", tmp_path / "copy"]
    shutil.copytree(folders[0], folders[1])
    assert store.read_results(*folders).studies["small"]["planned"] == both


def test_an_edited_study_keeps_the_trials_of_the_earlier_file_apart(tmp_path: Path, command) -> None:
    saved(tmp_path, finish=3)
    saved(tmp_path, text=SMALL.replace("steps = 30", "steps = 200"))
    output = status(command, tmp_path)
    assert output["studies"] == {"small": {"ok": 4, "missing": 1}}
    ((missing,),) = output["unfinished_of_earlier_plans"].values()
    results = store.read_results(tmp_path / "results")
    assert len(results.frame) == 7
    study = analyse(results, "small")
    assert (study.rows["steps"].tolist(), study.left_out) == ([200] * 4, 3)
    code, out, _ = command("status", tmp_path / "results")
    assert code == 1
    assert "3 more trials of other settings are" in out
    assert missing in out
    code, _, err = command("export", tmp_path / "results", "-o", tmp_path / "all.csv")
    assert (code, "3 more trials of other settings are" in err) == (0, True)
    assert pd.read_csv(tmp_path / "all.csv")["steps"].tolist() == [200] * 4
    assert command("drop", tmp_path / "results" / "small", missing[:8])[0] == 0
    code, out, _ = command("status", tmp_path / "results")
    assert (code, missing in out) == (0, False)


def test_a_file_that_is_edited_back_plans_its_first_trials_again(tmp_path: Path, command) -> None:
    first = saved(tmp_path)
    saved(tmp_path, text=SMALL.replace("steps = 30", "steps = 200"), finish=1)
    again = saved(tmp_path)
    assert again["planned"] == first["planned"]
    assert len(again["earlier"]) == 4
    assert status(command, tmp_path)["studies"] == {"small": {"ok": 4, "missing": 3}}


def test_trials_of_changed_data_are_kept_apart(tmp_path: Path, command) -> None:
    text = SMALL.replace('family = "mlp"', 'family = "gpt"').replace("params = [200, 800]\ndepth = 1", "params = 4000")
    text = text.replace("[data]", f'sequence_length = 16\n[data]\nsource = "text:{tmp_path / "data"}"')
    (tmp_path / "data").mkdir()
    for number in range(40):
        (tmp_path / "data" / f"{number}.txt").write_text(f"document {number} " * 50)
    saved(tmp_path, text=text, finish=1)
    (tmp_path / "data" / "new.txt").write_text("one more document " * 50)
    open_source.cache_clear()
    open_data.cache_clear()
    study = saved(tmp_path, text=text)
    assert len(study["planned"]) == 2
    assert len(study["earlier"]) == 2
    assert status(command, tmp_path)["studies"] == {"small": {"ok": 2, "missing": 1}}
    assert len(store.of_plans(store.read_results(tmp_path / "results")).frame) == 2


@pytest.mark.parametrize("name", ["", "zz", "0" * 16])
def test_only_trials_without_a_result_can_be_dropped(tmp_path: Path, command, name: str) -> None:
    study = saved(tmp_path, finish=2)
    finished = study["planned"][0]["trial_id"]
    for wrong in (name, finished):
        code, _, err = command("drop", tmp_path / "results" / "small", study["planned"][2]["trial_id"], wrong)
        assert code == 2
        assert (f"{finished} has a result" if wrong == finished else f"has this id: unknown {wrong!r}") in err
    assert store.read_study(tmp_path / "results" / "small", []) == study


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The folder of a study with three planned trials and no result."""
    planned = [{"trial_id": name} for name in ("3f2a0000", "3f2b0000", "77aa0000")]
    store.write_study(tmp_path, {"name": "three", "planned": planned})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("3f2c0000", "unknown '3f2c0000'; did you mean '3f2"),
        ("3f", "3f begins 2 ids: 3f2a0000, 3f2b0000"),
        ("", "unknown ''"),
    ],
)
def test_a_trial_to_drop_is_matched_as_one_to_show(three: Path, name: str, expected: str) -> None:
    """In the function that the command calls, and that may be called alone."""
    with pytest.raises(store.StoreError) as caught:
        store.drop(three, ["77aa0000", name], ())
    assert expected in str(caught.value)
    assert len(store.planned_ids(store.read_study(three, []))) == 3


def test_a_trial_named_twice_is_dropped_once(three: Path) -> None:
    assert store.drop(three, ["77", "77aa", "3f2a"], ()) == ["77aa0000", "3f2a0000"]
    assert store.planned_ids(store.read_study(three, [])) == ("3f2b0000",)


def test_nothing_can_be_dropped_where_every_trial_has_a_result(tmp_path: Path, command) -> None:
    saved(tmp_path, finish=4)
    code, _, err = command("drop", tmp_path / "results" / "small", "3f2a")
    assert code == 2
    assert "no trial is without a result" in err


def test_results_of_a_newer_version_are_refused_before_anything_starts(tmp_path: Path, command) -> None:
    saved(tmp_path, finish=1)
    study_dir = tmp_path / "results" / "small"
    (attempt,) = study_dir.glob("trials/*/*")
    study = store.read_study(study_dir, [])
    run = ["run", "small.toml"]
    reading = (["status", "results"], ["report", "results"], ["export", "results", "-o", "x.csv"])

    def refused() -> None:
        before = sorted(tmp_path.rglob("*"))
        for line in (*reading, run, ["predict", "results/small", "--params", "1e4"]):
            code, _, err = command(*line)
            assert code == 2, line
            assert len(err.splitlines()) == 1
            assert "newer version of scalebench (schema 3" in err
        assert sorted(tmp_path.rglob("*")) == before

    edit_record(attempt, schema=3)
    refused()
    edit_record(attempt, schema=store.SCHEMA)
    store.write_study(study_dir, study | {"schema": 3})
    refused()


def test_missing_samples_are_one_line_and_the_records_count(tmp_path: Path, command) -> None:
    saved(tmp_path, finish=0)
    for trial in store.read_study(tmp_path / "results" / "small", [])["planned"]:
        attempt = store.new_attempt(tmp_path / "results" / "small", trial["trial_id"])
        pd.DataFrame({"step": [0]}).to_parquet(attempt / "steps.parquet")
        store.write_record(attempt, {"trial_id": trial["trial_id"], "study": "small", "status": "ok"})
        (attempt / "steps.parquet").unlink()
    code, out, _ = command("status", tmp_path / "results")
    assert code == 0
    assert out.count("steps.parquet: missing, as in 3 more trials") == 1
    assert out.count("steps.parquet") == 1


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ("20", "warm-up: all trials end before the learning rate has reached its value, as after 20 steps"),
        ("[20,21]", "warm-up: 1 of 2 trials end before"),
        ("21", None),
    ],
)
def test_a_plan_whose_warm_up_never_ends_says_so(tmp_path: Path, command, steps: str, line: str | None) -> None:
    text = 'schema = 1\nname = "s"\n[model]\nfamily = "gpt"\nparams = 2e3\n[train]\nwarmup_steps = 20\n'
    (tmp_path / "s.toml").write_text(text)
    code, out, err = command("plan", "s.toml", "--set", f"train.steps={steps}")
    assert (code, err) == (0, "")
    assert (line in " ".join(out.split())) if line else ("warm-up" not in out)


def progress(results: Path, name: str) -> StudyProgress:
    folder = results / name
    return study_progress(store.read_results(results), folder, Observer(folder))


def test_a_trial_that_only_another_study_has_run_is_missing(tmp_path: Path, command) -> None:
    """Trial ids do not depend on the study's name, so two studies can plan the same trial."""
    saved(tmp_path)
    saved(tmp_path, text=SMALL.replace('"small"', '"other"'), finish=1)
    results = tmp_path / "results"
    assert status(command, tmp_path)["studies"] == {"other": {"ok": 1, "missing": 3}, "small": {"ok": 4}}
    assert command("status", results)[0] == 1
    assert [progress(results, name).done for name in ("other", "small")] == [1, 4]


def test_a_copy_of_a_study_has_no_missing_trials(tmp_path: Path, command) -> None:
    saved(tmp_path)
    results = tmp_path / "results"
    shutil.copytree(results / "small", results / "twin")
    assert status(command, tmp_path)["studies"] == {"small": {"ok": 4}, "twin": {}}
    assert progress(results, "twin").done == 4


def test_progress_of_a_plan_that_lists_ids_alone(tmp_path: Path) -> None:
    (tmp_path / "s" / "trials").mkdir(parents=True)
    store.write_study(tmp_path / "s", {"planned": ["a" * 16]})
    assert (progress(tmp_path, "s").planned, progress(tmp_path, "s").done) == (1, 0)


def test_a_folder_without_study_json_leaves_the_plan_of_the_other_folder(tmp_path: Path) -> None:
    plan = saved(tmp_path)
    shutil.copytree(tmp_path / "results", tmp_path / "copy")
    (tmp_path / "copy" / "small" / "study.json").unlink()
    assert store.read_results(tmp_path / "results", tmp_path / "copy").studies == {"small": plan}


def test_trials_of_earlier_plans_outlast_a_plan_that_lost_all_of_its_own() -> None:
    joined = joined_plans({"planned": [], "earlier": [{"trial_id": "a"}]}, {"planned": [{"trial_id": "b"}]})
    assert store.earlier_ids(joined) == ("a",)
    assert store.planned_ids(joined) == ("b",)


def test_a_trial_whose_checkpoints_are_damaged_is_run_again(tmp_path: Path) -> None:
    saved(tmp_path)
    study = load_study(tmp_path / "small.toml", ["run.checkpoint_steps=10"])
    for attempt in (tmp_path / "results").glob("small/trials/*/attempt-*"):
        (attempt / "checkpoints.json").write_text("{")
    assert len(survey(study, tmp_path / "results").missing) == 4


def test_a_demo_that_was_stopped_can_be_continued(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sweeps, "run_study", lambda *_, **__: 3)
    assert sweeps.run_demo(tmp_path / "results", None) == 3
