"""`show` without a trial lists all of them, and `generate` without one takes the best."""

from __future__ import annotations

import json
from pathlib import Path

from command_support import attempt_of, planted, write_study

from scalebench import store
from scalebench.cli.commands.generate import find_weights
from scalebench.workloads.weights import WEIGHTS


def test_show_lists_the_trials_with_what_tells_them_apart(command, tmp_path: Path) -> None:
    rows = planted(parent_trial_id=None)
    rows[1] |= {"status": "failed", "error_class": "ValueError", "validation_loss_nats": None}
    axes = {"params": [1000, 3000], "seed": [0, 1]}
    write_study(tmp_path / "results" / "planted", rows, axes)
    code, out, _ = command("show")
    assert code == 0
    heading, header, *lines = out.splitlines()
    assert heading == "planted"
    assert header.split() == ["trial", "status", "model", "settings", "loss", "(nats)", "step"]
    assert [line.split()[0] for line in lines] == sorted((row["trial_id"] for row in rows), key=str)
    assert lines[0].split()[1:6] == ["ok", "gpt", "1,000", "seed", "0"]
    assert lines[1].split()[1] == "failed"
    assert command("show", "nothing")[0] == 2
    (file,) = (tmp_path / "results" / "planted" / "trials" / str(rows[2]["trial_id"])).glob("*/record.json")
    file.write_bytes(bytes(100))
    document = json.loads(command("show", "--json")[1])
    assert len(document["trials"]) == len(rows) - 1
    assert ["record.json" in line for line in document["damaged"]] == [True]


def test_trials_of_one_size_are_in_order_of_their_settings(command, tmp_path: Path) -> None:
    rows = planted()[:4]
    for row, batch, schedule in zip(rows, (16, 8, 128, 8), (None, "wsd", "cosine", "cosine"), strict=True):
        row |= {"params_non_embedding": 1000, "seed": 0, "batch_size": batch, "schedule": schedule}
    write_study(tmp_path / "results" / "planted", rows, {"batch_size": [8, 16, 128], "schedule": ["wsd", "cosine"]})
    _, out, _ = command("show")
    assert [line.split("batch size ")[1].split(",")[0] for line in out.splitlines()[2:]] == ["8", "8", "16", "128"]
    assert "cosine" in out.splitlines()[2]
    code, _, err = command("show", "results")
    assert code == 2
    assert "results is a folder, not a trial: scalebench show --results results" in err


def test_generate_takes_the_lowest_loss_of_those_with_weights(command, tmp_path: Path, monkeypatch) -> None:
    """The choice alone: what is generated is tested in test_generate_command.py."""
    rows = planted()
    write_study(tmp_path / "results" / "planted", rows)
    _, _, err = command("generate", "results", "--prompt", "a")
    assert "no trial here kept the weights" in err
    for row in rows[:-2]:  # the two largest models, which are the best, kept none
        attempt = attempt_of(tmp_path / "results" / "planted", str(row["trial_id"]))
        (attempt / WEIGHTS).write_bytes(b"")
        store.write_json(attempt / "trial.json", {})
    monkeypatch.setattr("scalebench.cli.commands.generate.trial_of", lambda *_: type("Trial", (), {"spec": None}))
    best = min(rows[:-2], key=lambda row: float(str(row["validation_loss_nats"])))
    _, _, err = command("generate", "results", "--prompt", "a")
    assert f"planted/{best['trial_id']}" in err.splitlines()[0]
    assert "the lowest of 12 with weights" in err.splitlines()[0]


def test_numbers_of_the_list_are_those_of_the_records(command, tmp_path: Path) -> None:
    rows = planted()[:2]
    rows[0] |= {"step_time_median_s": 1.23456789123e-7}
    rows[1] |= {"step_time_median_s": None, "status": "failed", "error_class": "E", "error_message": "m"}
    write_study(tmp_path / "results" / "planted", rows)
    trials = {trial["trial_id"]: trial for trial in json.loads(command("show", "--json")[1])["trials"]}
    assert [trials[row["trial_id"]]["step_time_median_s"] for row in rows] == [1.23456789123e-7, None]
    (failed,) = json.loads(command("status", "results", "--json")[1])["not_ok"]
    assert (failed["trial_id"], failed["stop_step"]) == (rows[1]["trial_id"], None)


def test_of_a_trial_in_two_studies_the_one_with_a_result_is_shown_and_the_one_with_weights_generates(
    command, tmp_path: Path
) -> None:
    row = planted()[0]
    results, trial = tmp_path / "results", str(row["trial_id"])
    write_study(results / "planted", [row])
    attempt = attempt_of(results / "planted", trial)
    (attempt / WEIGHTS).write_bytes(b"")
    (results / "zeta" / "trials" / trial / "attempt-1").mkdir(parents=True)
    code, out, _ = command("show", trial)
    assert code == 0
    assert out.startswith(f"planted/{trial}: ok")
    assert find_weights(results, trial) == (attempt, None)
