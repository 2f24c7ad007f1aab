"""Trials exported to experiment trackers, read back by the trackers' own readers and by `fit`."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import ALPHA, attempt_of, planted, write_study

from scalebench import store
from scalebench.points import exports
from scalebench.points.files import open_table
from scalebench.store.trackers import TRACKERS, tracked_runs

MEASURED = ["validation_loss_nats", "validation_loss_se_nats", "step_time_median_s", "memory_tracked_peak_bytes"]
FIT = ("--where", "validation_loss_nats > 0", "--params-column", "params_non_embedding", "--loss-column",
       "validation_loss_nats", "--bootstrap", "20", "--json")  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sizes of a planted law with a training curve each; one trial diverged."""
    folder = tmp_path_factory.mktemp("results") / "planted"
    rows = [row | {"attempt_dir": ""} for row in planted() if row["seed"] == 0]
    rows[0] |= {"status": "diverged", "validation_loss_nats": None}
    write_study(folder, rows)
    study = store.read_json(folder / "study.json")
    store.write_json(folder / "study.json", study | {"measured": MEASURED})
    for row in rows:
        curve = {"step": np.arange(3), "train_loss_nats": np.array([5.0, 4.0, np.nan if row is rows[0] else 3.0])}
        curve |= {"step_time_s": np.full(3, 0.1), "data_time_s": np.zeros(3), "warm": [False, True, True]}
        pd.DataFrame(curve).to_parquet(attempt_of(folder, str(row["trial_id"])) / "steps.parquet")
    return folder


def test_a_run_has_settings_results_and_its_curve(results: Path) -> None:
    failed, *_, largest = tracked_runs(store.read_results(results))
    assert failed.settings["status"] == "diverged"
    assert "validation_loss_nats" not in failed.results
    assert (largest.settings["params_non_embedding"], largest.settings["family"]) == (1_000_000, "gpt")
    assert set(largest.results) == set(MEASURED)
    scalars = list(largest.scalars())
    assert (2, "train_loss_nats", 3.0) in scalars
    assert all(np.isfinite(value) for _, _, value in failed.scalars())
    assert not {"trial_id", "attempt_dir", "checked"} & set(largest.settings)


def check_read_back(command, folder: Path, runs: int = 7) -> None:
    """What `fit` reads of an export: a row per run and step, with the settings, and the planted law."""
    table = open_table(folder)
    assert {"step", "run", "params_non_embedding", "train_loss_nats", *MEASURED} <= set(table.names)
    frame = exports.read_logs(folder)[0]
    assert frame["run"].nunique() == runs
    code, out, err = command("fit", folder, *FIT)
    assert code == 0, err
    assert json.loads(out)["n_points"] == 6
    assert json.loads(out)["parameters"]["alpha"] == pytest.approx(ALPHA, rel=0.05)


@pytest.mark.slow
def test_tensorboard_reads_what_was_exported(command, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, out, _ = command("export", results, "--to", "tensorboard", "-o", "tb")
    assert code == 0
    assert "7 trials" in out
    assert "tensorboard --logdir tb" in out
    (largest,) = (tmp_path / "tb").glob("planted/000f4240*")
    log = EventAccumulator(str(largest))
    log.Reload()
    assert [(event.step, event.value) for event in log.Scalars("train_loss_nats")] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    check_read_back(command, tmp_path / "tb")


@pytest.mark.slow
def test_mlflow_reads_what_was_exported(command, results: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    assert command("export", results, "--to", "mlflow", "-o", "ml")[0] == 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'ml' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("planted")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    largest = next(run for name, run in runs.items() if name.startswith("000f4240"))
    assert largest.data.params["params_non_embedding"] == "1000000"
    history = client.get_metric_history(largest.info.run_id, "train_loss_nats")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert sorted({run.info.status for run in runs.values()}) == ["FAILED", "FINISHED"]
    check_read_back(command, tmp_path / "ml")


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log, blocks of 32 KiB after 7 bytes, each part with 7 bytes before it."""
    position, whole = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_weights_and_biases_reads_what_was_exported(command, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    code, out, _ = command("export", results, "--to", "wandb-offline", "-o", "wb")
    assert code == 0
    assert "wandb sync" in out
    assert len(list((tmp_path / "wb" / "wandb").glob("offline-run-*"))) == 7
    (file,) = (tmp_path / "wb" / "wandb").glob("offline-run-*/run-000f4240*.wandb")
    curve = []
    for data in wandb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        curve += [float(items["train_loss_nats"])] if "train_loss_nats" in items else []
    assert curve == [5.0, 4.0, 3.0]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_its_command(
    command, results: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    package = tracker.removesuffix("-offline")
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = command("export", results, "--to", tracker, "-o", "folder")
    assert (code, out) == (2, "")
    assert f"pip install {package}" in err
    assert not Path("folder").exists()


def test_an_export_is_never_added_to_a_folder(command, results: Path) -> None:
    Path("there").mkdir()
    Path("there/file").touch()
    code, _, err = command("export", results, "--to", "tensorboard", "-o", "there")
    assert code == 2
    assert "name a new folder" in err


def test_hyperparameters_of_a_summary_writer_are_columns(tmp_path: Path) -> None:
    """Those of ``torch.utils.tensorboard``: in a folder of their own below the run's."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "small")) as writer:
        writer.add_scalar("loss", 3.0, 1)
        writer.add_hparams({"params": 1e6, "kind": "dense"}, {"final": 2.5}, run_name="settings")
    frame, note = exports.read_logs(tmp_path)
    assert frame.loc[frame["step"] == 1, ["loss", "params", "kind", "run"]].values.tolist() == [
        [3.0, 1e6, "dense", "small"]
    ]
    assert "1 run;" in note


def test_a_database_of_mlflow_is_read_without_it(tmp_path: Path) -> None:
    """Its tables, as mlflow 3.17 makes them; deleted runs and values that are not numbers are left out."""
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.executescript(
            "create table runs (run_uuid text, name text, lifecycle_stage text);"
            "create table metrics (key text, value float, timestamp int, run_uuid text, step int, is_nan int);"
            "create table params (key text, value text, run_uuid text);"
            "insert into runs values ('a', 'same', 'active'), ('b', 'same', 'active'), ('c', 'gone', 'deleted');"
            "insert into metrics values ('loss', 3, 0, 'a', 1, 0), ('loss', 0, 0, 'a', 2, 1), ('loss', 2, 0, 'b', 1, 0)"
            ", ('loss', 9, 0, 'c', 1, 0); insert into params values ('N', '1e6', 'a'), ('N', '1e7', 'b');"
        )
    frame, note = exports.read_logs(tmp_path)
    assert frame[["run", "step", "loss", "N"]].values.tolist() == [["same a", 1, 3.0, "1e6"], ["same b", 1, 2.0, "1e7"]]
    assert "MLflow database, 2 runs" in note
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(exports.InputError, match="not a database of MLflow"):
        exports.read_logs(tmp_path)


def test_a_folder_that_trackers_cannot_write_to_is_one_line_and_others_are_quoted(command, results: Path) -> None:
    code, _, err = command("export", results, "--to", "tensorboard", "-o", os.fsdecode(b"r\xe9s"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "names in UTF-8 alone" in err
    pytest.importorskip("tensorboard")
    code, out, err = command("export", results, "--to", "tensorboard", "-o", "two words")
    assert code == 0, err
    assert "tensorboard --logdir 'two words'" in out
