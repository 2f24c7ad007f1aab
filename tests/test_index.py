"""The index of a study says what its records say, whatever happened to them since it was written."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from many_trials import many_trials, record_of, write_trial

from scalebench import store
from scalebench.store import index, results
from scalebench.store.files import checksum

TRIALS = 20
LATER = "attempt-20270101T000000000000Z-b"


@pytest.fixture
def study(tmp_path: Path, monkeypatch) -> Path:
    """A study of 20 trials with an index."""
    monkeypatch.setattr(index, "SMALLEST", 10)
    monkeypatch.setattr(index, "SETTLED_NS", 0)
    folder = many_trials(tmp_path / "results", TRIALS, columns=8)
    time.sleep(0.02)  # times of files are rounded to the kernel's ticks
    store.read_results(folder)
    assert len(list((folder / "index").iterdir())) == 1
    return folder


def from_records(study: Path) -> store.Results:
    """Read the results without an index, and write none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "SMALLEST", 1000)
        return store.read_results(study)


def trials_read(study: Path, monkeypatch) -> tuple[store.Results, list[str]]:
    """Read the results, and which trials were read from their records."""
    names: list[str] = []
    read = results.read_trial_dir

    def counted(trial_dir: Path) -> object:
        names.append(trial_dir.name)
        return read(trial_dir)

    with monkeypatch.context() as patch:
        patch.setattr(results, "read_trial_dir", counted)
        return store.read_results(study), names


def record_path(study: Path, number: int) -> Path:
    return next((study / "trials" / f"{number:016x}").glob("*/record.json"))


def rewrite(path: Path, **changes: object) -> None:
    """Change a record as if it had been written so, in place, to the same size where the changes have it."""
    content = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "sha256"} | changes
    path.write_text(json.dumps(content | {"sha256": checksum(content)}, indent=1))


def test_an_index_that_holds_is_all_that_is_read(study: Path, monkeypatch) -> None:
    indexed, names = trials_read(study, monkeypatch)
    assert names == []
    expected = from_records(study)
    pd.testing.assert_frame_equal(indexed.frame, expected.frame, check_like=True)
    assert indexed.damaged == expected.damaged == ()


def test_rows_of_a_large_study_are_its_records(study: Path) -> None:
    names = [f"{number:016x}" for number in range(TRIALS)]
    rows = store.latest_records(study, names, [])
    assert [*rows] == names
    for name, row in rows.items():
        record = store.read_record(record_path(study, int(name, 16)).parent)
        assert {key: value for key, value in row.items() if value is not None} == {
            key: value for key, value in record.items() if value is not None
        }
        assert row.get("no such column") is None
        assert len(row) == len(dict(row)) >= len(record)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new trial": lambda study: write_trial(study, record_of(90, f"{90:016x}", 8)),
    "a new trial with another column": lambda study: write_trial(study, record_of(90, f"{90:016x}", 8) | {"new": 1}),
    "a new trial without values": lambda study: write_trial(
        study, dict.fromkeys(record_of(90, "", 8)) | {"trial_id": f"{90:016x}", "status": "failed"}
    ),
    "a newer attempt": lambda study: write_trial(study, record_of(3, f"{3:016x}", 8) | {"status": "oom"}, LATER),
    "a newer attempt without a record": lambda study: (study / "trials" / f"{3:016x}" / LATER).mkdir(),
    "another value": lambda study: rewrite(record_path(study, 3), params=1234),
    "a deleted record": lambda study: record_path(study, 3).unlink(),
    "a deleted attempt": lambda study: shutil.rmtree(record_path(study, 3).parent),
    "a deleted trial": lambda study: shutil.rmtree(study / "trials" / f"{3:016x}"),
    "a record cut short": lambda study: os.truncate(record_path(study, 3), 50),
    "a changed bit": lambda study: record_path(study, 3).write_bytes(
        record_path(study, 3).read_bytes().replace(b"1003", b"1002", 1)
    ),
    "samples cut short": lambda study: os.truncate(record_path(study, 3).with_name("steps.parquet"), 1),
    "a folder in the place of a record": lambda study: (
        record_path(study, 3).rename(study / "away"),
        (next((study / "trials" / f"{3:016x}").iterdir()) / "record.json").mkdir(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_since_is_read_from_its_record(study: Path, monkeypatch, change: str) -> None:
    CHANGES[change](study)
    indexed, names = trials_read(study, monkeypatch)
    expected = from_records(study)
    pd.testing.assert_frame_equal(indexed.frame, expected.frame, check_like=True)
    assert indexed.damaged == expected.damaged
    assert len(names) == ("deleted trial" not in change)
    pd.testing.assert_frame_equal(store.read_results(study).frame, expected.frame, check_like=True)


def test_trials_stay_sorted_when_the_index_is_written_again(study: Path, monkeypatch) -> None:
    for number in range(10):
        write_trial(study, record_of(number, f"{number:015x}z", 8))
    time.sleep(0.02)
    store.read_results(study)
    indexed, names = trials_read(study, monkeypatch)
    assert names == []
    assert indexed.frame["trial_id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(indexed.frame, from_records(study).frame, check_like=True)


def test_a_missing_file_is_known_to_the_index(study: Path, monkeypatch) -> None:
    for path in study.glob("trials/*/*/steps.parquet"):
        path.unlink()
    for _ in range(2):
        indexed = store.read_results(study)
        (line,) = indexed.incomplete
        assert f"{TRIALS - 1} more" in line
        assert "steps.parquet" in line
        assert (len(indexed.frame), indexed.damaged) == (TRIALS, ())
    assert trials_read(study, monkeypatch)[1] == []


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_damaged_index_is_not_read(study: Path, content: bytes | None) -> None:
    expected = from_records(study)
    (path,) = (study / "index").iterdir()
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(bytes(changed) if content is None else content)
    indexed = store.read_results(study)
    pd.testing.assert_frame_equal(indexed.frame, expected.frame)
    assert indexed.damaged == ()


def test_a_copy_with_its_index_reads_its_own_records(study: Path, tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "copy" / "many"
    shutil.copytree(study, copy)
    rewrite(record_path(copy, 3), params=1234)
    indexed, names = trials_read(copy, monkeypatch)
    assert len(names) == TRIALS
    assert indexed.frame["params"].tolist() == [1234 if i == 3 else 1000 + i for i in range(TRIALS)]
    assert set(indexed.frame["attempt_dir"].map(lambda path: Path(path).parents[2])) == {copy}


def test_a_record_just_written_is_not_indexed(study: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "SETTLED_NS", 3_600_000_000_000)
    shutil.rmtree(study / "index")
    store.read_results(study)
    assert trials_read(study, monkeypatch)[1] != []
    assert not (study / "index").exists()


def test_no_index_is_written_through_a_symbolic_link(study: Path, tmp_path: Path) -> None:
    shutil.rmtree(study / "index")
    (tmp_path / "outside").mkdir()
    (study / "index").symlink_to(tmp_path / "outside")
    assert len(store.read_results(study).frame) == TRIALS
    assert list((tmp_path / "outside").iterdir()) == []


def _read_often(study: Path) -> int:
    index.SMALLEST, index.SETTLED_NS = 10, 0
    for number in range(5):
        shutil.rmtree(study / "index", ignore_errors=True)
        if len(store.read_results(study).frame) != TRIALS:
            return number
    return -1


@pytest.mark.slow
def test_two_processes_write_an_index_at_once(study: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_often, [study, study]) == [-1, -1]
    assert len(store.read_results(study).frame) == TRIALS


def test_tables_with_hundreds_of_columns_without_values_are_joined_in_one_piece() -> None:
    """Inserted one by one they draw a PerformanceWarning, which a mixed folder printed."""
    empty = dict.fromkeys((f"column {number}" for number in range(150)), None)
    tables = [pd.DataFrame([{"trial_id": name, "loss": 1.0, **empty}]) for name in ("a", "b")]
    whole = results.joined(tables)
    assert list(whole) == list(tables[0])
    assert whole["column 7"].tolist() == [None, None]
