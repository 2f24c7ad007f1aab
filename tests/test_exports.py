"""Exports and logs of other tools, and points whose units look slipped: each kind with its right value."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import reference_case

from scalebench.points.files import is_results, open_table
from scalebench.points.table import read_columns
from scalebench.points.table_warnings import run_column, unit_warnings

MLFLOW_TABLES = """
create table runs (run_uuid, name, lifecycle_stage);
create table metrics (run_uuid, step, key, value, is_nan);
create table params (run_uuid, key, value);
"""
SIZES = {"small": 1e6, "middle": 1e7, "large": 1e8}


def loss_of(size: float) -> float:
    return 1.5 + 20 * size**-0.3


# --- Weights & Biases ------------------------------------------------------------------------------------------------


def chart(metric: str = "eval/loss", steps: int = 3) -> pd.DataFrame:
    """A chart export: a step column, and of each run its metric with minimum and maximum."""
    frame = pd.DataFrame({"Step": 100 * np.arange(1, steps + 1)})
    for i, run in enumerate(SIZES):
        values = np.array([4.0, 3.0, 2.5, 2.25, 2.1, 2.05])[:steps] - i
        for suffix in ("", "__MIN", "__MAX"):
            frame[f"{run} - {metric}{suffix}"] = values
    return frame


def test_a_chart_export_is_reshaped_to_a_row_per_run_and_step(tmp_path: Path) -> None:
    frame = chart()
    frame.loc[2, [name for name in frame if name.startswith("large")]] = np.nan  # that run has ended
    frame.to_csv(tmp_path / "chart.csv", index=False)
    table = open_table(tmp_path / "chart.csv")
    assert set(table.names) == {"Step", "run", "eval/loss"}
    columns = read_columns(tmp_path / "chart.csv", {"x": "Step", "y": "eval/loss", "config": "run"})
    assert len(columns) == 8
    last = read_columns(tmp_path / "chart.csv", {"x": "Step", "y": "eval/loss"}, last_of="run")
    assert last.values["x"].tolist() == [300, 300, 200]
    assert last.values["y"].tolist() == [2.5, 1.5, 1.0]


def test_a_chart_says_what_it_is_and_its_columns(command, tmp_path: Path) -> None:
    chart().to_csv(tmp_path / "chart.csv", index=False)
    code, out, err = command("fit", "chart.csv", "--law", "chinchilla")
    assert (code, out) == (2, "")
    assert "Weights & Biases, 3 runs" in err
    assert len(err.splitlines()) == 4
    chart(steps=6).to_csv(tmp_path / "chart.csv", index=False)
    arguments = ("--x-column", "Step", "--y-column", "eval/loss", "--where", "`eval/loss` > 0", "--bootstrap", "9")
    code, _, err = command("fit", "chart.csv", *arguments)
    assert code == 0, err
    assert "names 3 runs for 18 rows" in err
    assert "--run-column 'run'" in err


def test_a_table_of_many_columns_has_a_short_error(command, tmp_path: Path) -> None:
    wide = pd.DataFrame({f"some-very-long-name-of-a-column-{i}": [1.0, 2.0] for i in range(600)})
    wide.to_csv(tmp_path / "wide.csv", index=False)
    code, _, err = command("fit", "wide.csv", "--params-column", "some-very-long-name-of-a-column-77x")
    assert code == 2
    assert len(err) < 2000
    assert "some-very-long-name-of-a-column-77" in err
    assert "600 in all" in err


# --- folders of logs -------------------------------------------------------------------------------------------------


def trainer_state(folder: Path, losses: dict[int, float]) -> None:
    folder.mkdir(parents=True)
    log = [{"step": step, "epoch": step / 100, "loss": loss + 0.1} for step, loss in losses.items()]
    log += [{"step": step, "eval_loss": loss} for step, loss in losses.items()]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": max(losses), "log_history": log}))


def test_logs_of_the_hugging_face_trainer_are_read(tmp_path: Path) -> None:
    for i, run in enumerate(SIZES):
        trainer_state(tmp_path / run / "checkpoint-200", {100: 4.0 - i, 200: 3.0 - i})
        trainer_state(tmp_path / run / "checkpoint-300", {100: 4.0 - i, 200: 3.0 - i, 300: 2.5 - i})
    assert not is_results(tmp_path)
    table = open_table(tmp_path)
    assert {"step", "epoch", "loss", "eval_loss", "run"} == set(table.names)
    assert "3 runs" in table.note
    columns = read_columns(tmp_path, {"y": "eval_loss"}, last_of="run")
    assert sorted(columns.values["y"]) == [0.5, 1.5, 2.5]
    single = tmp_path / "small" / "checkpoint-300" / "trainer_state.json"
    assert read_columns(single, {"x": "step", "y": "loss"}).values["y"].tolist() == [4.1, 3.1, 2.6]


def test_the_last_checkpoint_is_that_of_the_most_steps(tmp_path: Path) -> None:
    """Names sort by letters: checkpoint-1000 comes before checkpoint-500."""
    trainer_state(tmp_path / "checkpoint-500", {500: 3.0})
    trainer_state(tmp_path / "checkpoint-1000", {500: 3.0, 1000: 2.0})
    assert read_columns(tmp_path, {"x": "step", "y": "eval_loss"}).values["x"].tolist() == [500, 1000]


def test_a_metric_of_a_chart_may_have_a_hyphen(tmp_path: Path) -> None:
    chart("val-loss").to_csv(tmp_path / "chart.csv", index=False)
    assert "val-loss" in open_table(tmp_path / "chart.csv").names


def mlflow_run(folder: Path, metric: str, **params: str) -> None:
    (folder / "metrics").mkdir(parents=True)
    (folder / "meta.yaml").write_text("run_name: r\n")
    (folder / "metrics" / "loss").write_text(metric)
    for name, value in params.items():
        file = folder / "params" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)


def test_parameters_of_mlflow_may_lie_in_groups(tmp_path: Path) -> None:
    mlflow_run(tmp_path / "0" / "a", "1700000000 2.5 1\n", optim__lr="0.1")
    assert {"loss", "optim/lr"} <= set(open_table(tmp_path).names)


def test_a_metric_of_mlflow_keeps_its_values_beside_a_parameter_of_that_name(tmp_path: Path) -> None:
    mlflow_run(tmp_path / "files" / "0" / "a", "1700000000 0.5 1\n1700000001 0.25 2\n", loss="0.9")
    (tmp_path / "base").mkdir()
    with closing(sqlite3.connect(tmp_path / "base" / "mlflow.db")) as database:
        database.executescript(
            f"{MLFLOW_TABLES} insert into runs values ('r', 'n', 'active');"
            "insert into params values ('r', 'loss', '9');"
            "insert into metrics values ('r', 1, 'loss', 0.5, 0); insert into metrics values ('r', 2, 'loss', 0.25, 0);"
        )
    for folder in ("files", "base"):
        columns = {"x": "step", "y": "loss"}
        assert read_columns(tmp_path / folder, columns).values["y"].tolist() == [0.5, 0.25], folder


def test_a_metric_of_mlflow_that_is_cut_short_is_one_line(command, tmp_path: Path) -> None:
    mlflow_run(tmp_path / "mlruns" / "0" / "a", "1700000000 2.5 1\n1700000001")
    code, out, err = command("fit", "mlruns", "--x-column", "step", "--y-column", "loss")
    assert (code, out) == (2, "")
    assert err.startswith("mlruns/0/a/metrics/loss: ")
    assert len(err.splitlines()) == 1


def test_a_database_of_mlflow_is_read_in_a_folder_with_signs_of_urls(tmp_path: Path) -> None:
    folder = tmp_path / "runs #1?a%20b"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.executescript(
            f"{MLFLOW_TABLES} insert into runs values ('r', 'n', 'active');"
            "insert into metrics values ('r', 1, 'm', 2.0, 0);"
        )
    assert "m" in open_table(folder).names
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_mlflow_runs_are_read_with_their_parameters(command, tmp_path: Path) -> None:
    for i, (run, size) in enumerate(SIZES.items()):
        folder = tmp_path / "mlruns" / "0" / f"{i:032x}"
        (folder / "metrics").mkdir(parents=True)
        (folder / "params").mkdir()
        (folder / "meta.yaml").write_text(f"run_name: {run}\n")
        lines = [f"1700000000000 {loss_of(size) + extra} {step}" for step, extra in ((1, 1.0), (2, 0.0))]
        (folder / "metrics" / "val_loss").write_text("\n".join(lines) + "\n")
        (folder / "params" / "n_params").write_text(f"{size:.0f}")
    read = read_columns(tmp_path / "mlruns", {"params": "n_params", "loss": "val_loss"}, last_of="run")
    assert sorted(read.values["params"]) == list(SIZES.values())
    assert sorted(read.values["loss"], reverse=True) == pytest.approx(list(map(loss_of, SIZES.values())))
    columns = ("--params-column", "n_params", "--loss-column", "val_loss")
    code, out, _ = command("fit", "mlruns", *columns, "--last", "--fix", "E=1.5", "--bootstrap", "9", "--json")
    assert code == 0
    fitted = json.loads(out)["parameters"]
    assert fitted["alpha"] == pytest.approx(0.3, rel=1e-3)
    assert fitted["A"] == pytest.approx(20, rel=1e-2)


def test_tensorboard_event_files_are_read_or_named(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    for run in SIZES:
        writer = events.EventFileWriter(str(tmp_path / run))
        for step, value in ((1, 3.0), (2, 2.5)):
            summary = Summary(value=[Summary.Value(tag="loss", simple_value=value)])
            writer.add_event(Event(step=step, summary=summary))
        writer.close()
    columns = read_columns(tmp_path, {"x": "step", "y": "loss"})
    assert len(columns) == 6
    assert set(columns.values["y"]) == {3.0, 2.5}


def test_a_loss_over_steps_is_not_doubted_as_a_size_and_the_columns_of_a_log_fit_a_line(
    command, tmp_path: Path
) -> None:
    losses = {step: 2 + 30 / step for step in range(50, 501, 50)}
    trainer_state(tmp_path / "run", losses)
    arguments = ("--x-column", "step", "--y-column", "eval_loss", "--bootstrap", "9")
    code, _, err = command("fit", "run", *arguments)
    assert code == 0, err
    assert "is that a count" not in err
    assert "names 1 run for 10 rows" in err
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    for entry in state["log_history"]:
        entry |= {f"metric_{i}": 1.0 for i in range(90)}
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(state))
    code, _, err = command("fit", "run")
    assert code == 2
    assert "in all" in err.splitlines()[-1]
    assert max(map(len, err.splitlines())) < 400


def test_a_damaged_log_is_one_line(command, tmp_path: Path) -> None:
    for content in ("{", "{}", '{"log_history": []}', '{"log_history": [3]}'):
        (tmp_path / "trainer_state.json").write_text(content)
        code, out, err = command("fit", "trainer_state.json", "--x-column", "step", "--y-column", "loss")
        assert (code, out) == (2, "")
        assert err.startswith("trainer_state.json: ")
        assert len(err.splitlines()) == 1


def test_last_needs_a_column_of_runs(command, tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2, 3], "y": [3.0, 2, 1]}).to_csv(tmp_path / "p.csv", index=False)
    code, _, err = command("fit", "p.csv", "--last")
    assert code == 2
    assert "--run-column" in err


@pytest.mark.parametrize(
    ("names", "column"), [(("x", "Name"), "Name"), (("run_id", "run"), "run"), (("x", "runtime"), None)]
)
def test_a_column_of_runs_is_known_by_its_name(names: tuple[str, ...], column: str | None) -> None:
    assert run_column(names) == column


# --- units -----------------------------------------------------------------------------------------------------------

PARAMS = np.array([25e6, 100e6, 400e6, 1.4e9])
TOKENS = np.array([2e9, 8e9, 16e9, 30e9])
LOSS = np.array([4.1, 3.4, 2.9, 2.5])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"params": PARAMS / 1e6}, "are the parameters in millions"),
        ({"tokens": TOKENS / 1e6}, "are the tokens in millions"),
        ({"tokens": PARAMS / 10, "params": TOKENS}, "are the columns swapped?"),
        ({"tokens": TOKENS / 1e9, "params": PARAMS}, "are the tokens in"),
        ({"params": PARAMS / 1e6, "tokens": TOKENS / 1e6}, "are both in millions"),
        ({"flops": 6 * PARAMS * TOKENS / 1e9}, "FLOPs are 1e-09 times 6ND"),
        ({"loss": np.exp(LOSS + 1)}, "perplexities"),
    ],
)
def test_units_that_look_slipped_are_one_line(changes: dict[str, object], part: str) -> None:
    (line,) = unit_warnings({"params": PARAMS, "tokens": TOKENS, "loss": LOSS} | changes)
    assert part in line


def test_sound_points_raise_no_doubt() -> None:
    sound = {"params": PARAMS, "tokens": TOKENS, "loss": LOSS, "flops": 8 * PARAMS * TOKENS}
    assert unit_warnings(sound) == []
    repeated = {name: np.repeat(values, 3) for name, values in sound.items()}
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(12)
    assert unit_warnings(repeated | {"loss": repeated["loss"] * noise}) == []


def test_two_evaluation_sets_in_one_table_are_named() -> None:
    twice = {"params": np.tile(PARAMS, 2), "tokens": np.tile(TOKENS, 2), "loss": np.concatenate([LOSS, LOSS * 1.4])}
    (line,) = unit_warnings(twice)
    assert "differ by up to ×1.4 (4 of 4 inputs)" in line


@pytest.mark.parametrize("name", ["val_ppl", "bits_per_byte"])
def test_a_column_named_after_another_unit_is_named(command, tmp_path: Path, name: str) -> None:
    size, tokens = np.tile(PARAMS, 4), np.repeat(TOKENS, 4)
    high = 20 + 545 * size**-0.2 + 409 * tokens**-0.2  # too high for nats, whatever the name
    frame = pd.DataFrame({"N": size, "D": tokens, name: high})
    frame.to_csv(tmp_path / "p.csv", index=False)
    columns = ("--params-column", "N", "--tokens-column", "D", "--loss-column", name)
    _, _, err = command("fit", "p.csv", "--law", "chinchilla", *columns, "--bootstrap", "9")
    assert f"column {name!r} looks like" in err
    assert ("perplexities?" in err) == (name != "val_ppl")  # what the name says is not asked as well


def test_multiplier_of_two_units_is_doubted(command, tmp_path: Path) -> None:
    flops = np.geomspace(1e17, 1e21, 9)
    for name, unit in (("old", 1e9), ("new", 1.0)):
        pd.DataFrame({"flops": flops / unit, "loss": 1.7 + 40 * flops**-0.1}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    code, _, err = command("worth", "old.csv", "new.csv")
    assert code == 0
    assert "same unit" in err


# --- cases from the field --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
def test_points_of_two_series_determine_no_optimum(command) -> None:
    for name in ("a.csv", "b.csv"):
        path = reference_case("25-mixed-series-nonsense-optimum") / name
        _, out, err = command("optimal", path, "--approach", "3")
        assert "two series mixed" in err
        assert "not determined" in out or "did not settle" in out
        assert "G" not in out.replace("GF", "").split("interval from")[-1].split("status")[0]
        document = json.loads(command("optimal", path, "--approach", "3", "--json")[1])
        assert all(row["params"] is None for each in document["allocations"] for row in each["at"])
        assert document["conventions"]["rows"] == []
        fitted = json.loads(command("fit", path, "--law", "chinchilla", "--bootstrap", "100", "--json")[1])
        assert {"alpha", "A", "B"} <= {*fitted["undetermined"]}


@pytest.mark.parametrize(("name", "rows"), [("sepline.csv", 18), ("pts.csv.gz", 18)])
def test_the_separator_line_and_gzip_of_the_cases(name: str, rows: int) -> None:
    path = reference_case("27-sep-line-and-gz") / name
    assert len(read_columns(path, {"params": "params", "loss": "loss"})) == rows


@pytest.mark.slow
def test_the_chart_of_two_hundred_runs_has_an_error_of_four_lines(command) -> None:
    _, _, err = command("fit", reference_case("24-wide-file-error") / "wide200.csv", "--law", "chinchilla")
    assert len(err) < 1500
    assert "200 runs side by side" in err
