"""Trial folders: atomic, mergeable, and damage is reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import datetime, tzinfo
from pathlib import Path

import pandas as pd
import pytest

from scalebench import store
from scalebench.store.comparisons import new_run


def attempt(
    root: Path,
    trial: str = "t" * 16,
    study: str = "s",
    *,
    steps: int = 50,
    columns: Sequence[str] = (),
    **values: object,
) -> Path:
    folder = store.new_attempt(root / study, trial)
    store.write_json(folder / "trial.json", {"columns": list(columns)})
    pd.DataFrame({"step": range(steps), "step_time_s": [0.1] * steps}).to_parquet(folder / "steps.parquet")
    row = {"study": study, "trial_id": trial, "status": "ok", "params": 10} | values
    store.write_record(folder, row)
    return folder


def test_a_record_holds_every_column_with_null_for_what_was_not_measured(tmp_path: Path) -> None:
    folder = attempt(tmp_path, columns=["energy_j", "params"], learning_rate=0.1)
    record = json.loads((folder / "record.json").read_text())
    assert {*store.STORE_NAMES, "energy_j", "params"} <= set(record)
    assert record["energy_j"] is None
    assert record["params"] == 10
    frame = store.load_results(tmp_path)
    assert list(frame.columns[: len(store.STORE_NAMES)]) == list(store.STORE_NAMES)
    assert frame.loc[0, "learning_rate"] == 0.1
    assert frame.loc[0, "attempt"] == folder.name


def test_statuses_outside_the_vocabulary_and_nan_are_refused(tmp_path: Path) -> None:
    folder = store.new_attempt(tmp_path / "s", "t")
    with pytest.raises(ValueError, match="'done' is not one of ok, oom"):
        store.write_record(folder, {"trial_id": "t", "status": "done"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_record(folder, {"trial_id": "t", "status": "ok", "mfu": float("nan")})
    assert not (folder / "record.json").exists()


def test_a_write_that_fails_leaves_the_old_content_and_no_rubbish(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    store.write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scalebench.store.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_latest_attempt_counts_and_earlier_ones_stay(tmp_path: Path) -> None:
    first = attempt(tmp_path, status="failed")
    second = attempt(tmp_path)
    frame = store.load_results(tmp_path)
    assert frame["attempt"].tolist() == [second.name]
    assert (first / "record.json").exists()


class SetBack(datetime):
    """A clock that was set back to the year 2001."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> SetBack:
        return cls(2001, 1, 1, tzinfo=tz)


def test_the_latest_attempt_counts_also_after_the_clock_was_set_back(tmp_path: Path, monkeypatch) -> None:
    attempt(tmp_path, status="failed")
    monkeypatch.setattr("scalebench.store.names.datetime", SetBack)
    latest = [attempt(tmp_path, status="failed"), attempt(tmp_path)][-1]
    assert store.load_results(tmp_path)[["attempt", "status"]].to_numpy().tolist() == [[latest.name, "ok"]]


def test_a_folder_named_by_hand_does_not_keep_attempts_from_being_made(tmp_path: Path) -> None:
    (tmp_path / "s" / "trials" / "a" / "attempt-mine").mkdir(parents=True)
    assert store.new_attempt(tmp_path / "s", "a").is_dir()


def test_runs_of_a_comparison_sort_in_their_order_also_after_the_clock_was_set_back(
    tmp_path: Path, monkeypatch
) -> None:
    first = new_run(tmp_path, "norm")
    monkeypatch.setattr("scalebench.store.names.datetime", SetBack)
    assert new_run(tmp_path, "norm").name > first.name


def test_an_attempt_without_a_record_does_not_count(tmp_path: Path) -> None:
    store.new_attempt(tmp_path / "s", "a")
    attempt(tmp_path, "b")
    assert store.load_results(tmp_path)["trial_id"].tolist() == ["b"]


@pytest.mark.parametrize("name", ["record.json", "steps.parquet"])
def test_a_file_cut_in_half_is_reported_and_the_earlier_attempt_is_used(tmp_path: Path, name: str) -> None:
    attempt(tmp_path, "a", params=1)
    broken = attempt(tmp_path, "a", params=2)
    attempt(tmp_path, "b", params=3)
    half = (broken / name).read_bytes()
    (broken / name).write_bytes(half[: len(half) // 2])
    results = store.read_results(tmp_path)
    assert results.frame["params"].tolist() == [1, 3]
    assert len(results.damaged) == 1
    assert str(broken / name) in results.damaged[0]
    with pytest.warns(UserWarning, match="damaged"):
        store.load_results(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"schema": 9}', '{"schema": 1, "status": "fine"}', "\x00"])
def test_a_record_that_is_not_one_is_damage(tmp_path: Path, content: str) -> None:
    folder = attempt(tmp_path)
    (folder / "record.json").write_text(content)
    results = store.read_results(tmp_path)
    assert results.frame.empty
    assert "record.json" in results.damaged[0]


def test_records_that_call_the_workload_mode_are_read(tmp_path: Path) -> None:
    folder = attempt(tmp_path, workload="inference", latency_median_s=0.5)
    record = json.loads((folder / "record.json").read_text())
    record["mode"] = record.pop("workload")
    del record["sha256"]
    record["schema"] = 1
    store.write_json(folder / "record.json", record)
    frame = store.load_results(tmp_path)
    assert frame["workload"].tolist() == ["inference"]
    assert frame["latency_median_s"].tolist() == [0.5]
    assert "mode" not in frame


def test_a_field_named_mode_does_not_replace_the_workload(tmp_path: Path) -> None:
    """A family of a user's own may call a field of its configuration mode."""
    attempt(tmp_path, workload="training", mode="frozen")
    frame = store.load_results(tmp_path)
    assert frame[["workload", "mode"]].to_numpy().tolist() == [["training", "frozen"]]


def test_the_table_has_the_columns_of_every_record_with_null_where_one_lacks_it(tmp_path: Path) -> None:
    attempt(tmp_path, "a", loss=1.5)
    attempt(tmp_path, "b", study="other", latency=0.5)
    frame = store.load_results(tmp_path)
    assert frame["loss"].isna().tolist() != frame["latency"].isna().tolist()
    assert frame["loss"].dropna().tolist() == [1.5]
    assert frame["latency"].dropna().tolist() == [0.5]


def test_copying_folders_merges_results(tmp_path: Path) -> None:
    attempt(tmp_path / "one", "a")
    attempt(tmp_path / "two", "b")
    shutil.copytree(tmp_path / "two", tmp_path / "one", dirs_exist_ok=True)
    assert store.load_results(tmp_path / "one")["trial_id"].tolist() == ["a", "b"]
    merged = store.load_results(tmp_path / "one", tmp_path / "two")
    assert merged["trial_id"].tolist() == ["a", "b"]  # the attempt at b is in both folders, and is one run


def test_a_study_folder_and_the_results_folder_both_serve(tmp_path: Path) -> None:
    attempt(tmp_path, study="s")
    store.write_json(tmp_path / "s" / "study.json", {"title": "T"})
    for path in (tmp_path, tmp_path / "s"):
        assert store.read_results(path).studies == {"s": {"title": "T"}}
    for path in (tmp_path / "absent", tmp_path / "s" / "trials"):
        with pytest.raises(store.StoreError, match=path.name):
            store.read_results(path)


def test_export_by_suffix(tmp_path: Path) -> None:
    attempt(tmp_path / "r", status="failed", error_message='a "quoted", text\nof two lines')
    results = store.read_results(tmp_path / "r")
    for name, reader in (("x.csv", pd.read_csv), ("y.parquet", pd.read_parquet)):
        store.export(results, tmp_path / "out" / name)
        row = reader(tmp_path / "out" / name).iloc[0]
        assert row["error_message"] == 'a "quoted", text\nof two lines'
        assert row["params"] == 10
    with pytest.raises(store.StoreError, match=r"\.xlsx"):
        store.export(results, tmp_path / "z.xlsx")


def test_steps_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = attempt(tmp_path)
    assert len(store.read_steps(folder)) == 50
    (folder / "steps.parquet").write_bytes(b"PAR1rubbish")
    with pytest.raises(store.StoreError, match=r"steps\.parquet"):
        store.read_steps(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(store.StoreError, match=r"file.*cannot be written"):
        store.check_writable(blocked / "results")
