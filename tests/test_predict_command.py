"""`scalebench predict`: planted costs and losses come back, each with interval and reach; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import ALPHA, BATCH_TOKENS, SIZES, STEPS, VOCABULARY_BYTES, A, E, planted, write_study

from scalebench.laws import fit
from scalebench.store import write_json


@pytest.mark.slow
def test_the_five_questions_and_the_loss_are_answered(command, tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "planted", planted())
    code, out, _ = command("predict", "results", "--params", "3e6", "--json")
    assert code == 0
    output = json.loads(out)
    answers = output["answers"]
    n, steps = 3e6, STEPS
    truth = {
        "validation_loss": E + A * n**-ALPHA,
        "step_time": 2e-3 + 50e-9 * n, "training_time": steps * (2e-3 + 50e-9 * n),
        "memory": 2.0**20 + 18 * n, "compute": steps * (1e6 + 6 * n * BATCH_TOKENS),
        "checkpoint": 5_000 + 12 * (n + VOCABULARY_BYTES * n**0.5),
    }  # fmt: skip
    assert set(answers) == set(truth) | {"data", "energy"}
    assert answers["energy"]["reason"] == "not measured: no energy counter was recorded"
    for name, value in truth.items():
        assert answers[name]["value"] == pytest.approx(value, rel=0.01), name
        assert answers[name]["low"] * (1 - 1e-4) <= value <= answers[name]["high"] * (1 + 1e-4), name
        assert answers[name]["beyond"] == pytest.approx(3, rel=0.05), name
    assert answers["data"]["value"] == output["tokens"] == steps * BATCH_TOKENS
    worst = max(abs(row["error_percent"]) for row in output["backtest"])
    assert answers["validation_loss"]["hold_out_percent"] == worst
    assert answers["compute"]["hold_out_percent"] < 1e-3  # without noise, a line is predicted
    assert [row["size"] for row in output["backtest"]] == pytest.approx(list(SIZES[-len(output["backtest"]) :]))


@pytest.mark.slow
def test_the_table_says_reach_and_the_hold_out_error(command, tmp_path: Path) -> None:
    write_study(tmp_path / "planted", planted())
    _, out, _ = command("predict", "planted", "--params", "1e8")
    assert "×100" in out
    assert "rolling hold-out of the loss: " in out
    assert "×100 beyond the data: the intervals hold only if the laws do" in out.replace("×100.0", "×100")
    _, inside, _ = command("predict", "planted", "--params", "2e4")
    assert inside.count("inside") == 6
    assert "hold only if" not in inside
    assert "compute comes from a law" in out
    assert "`scalebench plan STUDY --set model.params=1e+08` counts it" in " ".join(out.split())


def test_a_fit_alone_has_no_compute_to_count(command, tmp_path: Path) -> None:
    pd.DataFrame({"params": SIZES, "loss": [E + A * n**-ALPHA for n in SIZES]}).to_csv("p.csv", index=False)
    assert command("fit", "p.csv", "--bootstrap", "9", "-o", "f.json")[0] == 0
    assert "scalebench plan" not in command("predict", "f.json", "--params", "1e8")[1]


@pytest.mark.slow
def test_other_data_scale_time_and_compute_and_refuse_the_loss(command, tmp_path: Path) -> None:
    write_study(tmp_path / "planted", planted())
    once = json.loads(command("predict", "planted", "--params", "3e6", "--json")[1])["answers"]
    tokens = 10 * STEPS * BATCH_TOKENS
    ten = json.loads(command("predict", "planted", "--params", "3e6", "--tokens", tokens, "--json")[1])["answers"]
    for name in ("training_time", "compute"):
        assert ten[name]["value"] == pytest.approx(10 * once[name]["value"])
        assert ten[name]["high"] == pytest.approx(10 * once[name]["high"])
    assert ten["memory"] == once["memory"]
    assert ten["validation_loss"]["value"] is None
    assert "every trial saw 1,024,000 tokens" in ten["validation_loss"]["reason"]


@pytest.mark.slow
def test_tokens_per_parameter_are_carried_on(command, tmp_path: Path) -> None:
    rows = [row | {"tokens_seen": 20 * row["params_non_embedding"], "steps": 5} for row in planted()]
    write_study(tmp_path / "planted", rows)
    output = json.loads(command("predict", "planted", "--params", "3e6", "--json")[1])
    assert output["tokens"] == pytest.approx(6e7)
    assert output["answers"]["validation_loss"]["value"] == pytest.approx(E + A * 3e6**-ALPHA, rel=0.01)
    assert "number of steps is open" in output["answers"]["compute"]["reason"]


@pytest.mark.slow
def test_a_grid_of_sizes_and_lengths_answers_the_loss_of_both(command, tmp_path: Path) -> None:
    beta, b, rows = 0.35, 300.0, []
    for i, steps in enumerate((200, 800, 3_200, 12_800)):
        for row in planted()[::2]:
            n, tokens = float(row["params_non_embedding"]), steps * BATCH_TOKENS
            loss = E + A * n**-ALPHA + b * tokens**-beta
            changed = {"steps": steps, "tokens_seen": tokens, "validation_loss_nats": loss, "trial_id": f"{n:.0f}-{i}"}
            rows.append(row | changed)
    write_study(tmp_path / "planted", rows, {"steps": [200, 800, 3_200, 12_800]})
    output = json.loads(command("predict", "planted", "--params", "3e6", "--tokens", "1e8", "--json")[1])
    assert output["answers"]["validation_loss"]["value"] == pytest.approx(
        E + A * 3e6**-ALPHA + b * 1e8**-beta, rel=1e-5
    )
    code, out, _ = command("predict", "planted", "--params", "3e6")
    assert code == 0
    assert "validation loss, data: refused: the trials vary size and data: give --tokens" in out


@pytest.mark.slow
def test_a_mixture_is_refused_with_its_parts_and_where_chooses(command, tmp_path: Path) -> None:
    other = [row | {"implementation": "sdpa", "trial_id": f"s{row['trial_id']}"} for row in planted()]
    slow = [row | {"step_time_median_s": 3 * row["step_time_median_s"]} for row in other]
    write_study(tmp_path / "planted", planted() + slow)
    code, _, err = command("predict", "planted", "--params", "3e6")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "holds 2 series: eager; sdpa; choose one, as in --where \"implementation == 'eager'\"" in line
    _, out, _ = command("predict", "planted", "--params", "3e6", "--where", "implementation == 'sdpa'", "--json")
    assert json.loads(out)["answers"]["step_time"]["value"] == pytest.approx(3 * (2e-3 + 50e-9 * 3e6), rel=0.02)


def test_a_fit_of_a_mixture_says_so(command, tmp_path: Path) -> None:
    other = [row | {"implementation": "sdpa", "trial_id": f"s{row['trial_id']}"} for row in planted()]
    write_study(tmp_path / "planted", planted() + other)
    code, out, err = command("fit", "planted", "--law", "power")
    assert (code, err.count("\n")) == (0, 1)
    assert "these trials differ in implementation: choose with --where" in err
    assert "points      28 in 7 configurations" in out
    assert command("fit", "planted", "--where", "implementation == 'sdpa'")[2] == ""


@pytest.mark.slow
def test_a_fit_of_tuned_trials_warns_that_predict_uses_the_best(command, tmp_path: Path) -> None:
    """At rate 2 every loss is higher: predict leaves those trials out, a fit mixes them and warns."""
    worse = [
        row | {"learning_rate": 2.0, "trial_id": f"w{row['trial_id']}", "validation_loss_nats": 9.0}
        for row in planted(learning_rate=1.0)
    ]
    folder = write_study(tmp_path / "planted", planted(learning_rate=1.0) + worse, {"learning_rate": [1.0, 2.0]})
    definition = json.loads((folder / "study.json").read_text())
    write_json(folder / "study.json", definition | {"fit": {"law": "power", "best_over": ["learning_rate"]}})
    answers = json.loads(command("predict", "planted", "--params", "3e6", "--json")[1])["answers"]
    assert answers["validation_loss"]["value"] == pytest.approx(E + A * 3e6**-ALPHA, rel=0.01)
    warning = command("fit", "planted", "--law", "power", "--bootstrap", "20")[2]
    assert "tuned over learning_rate" in warning
    assert command("fit", "planted", "--where", "learning_rate == 1", "--bootstrap", "20")[2] == ""


@pytest.mark.slow
def test_failed_invalid_and_shared_trials_stay_out(command, tmp_path: Path) -> None:
    rows = planted()
    rows[0] |= {"status": "diverged", "validation_loss_nats": 99.0}
    rows[3] |= {"invalid_reason": "MFU above 100 %", "validation_loss_nats": 99.0}
    rows[5] |= {"timing_exclusive": False, "step_time_median_s": 99.0}
    write_study(tmp_path / "planted", rows)
    answers = json.loads(command("predict", "planted", "--params", "3e6", "--json")[1])["answers"]
    assert answers["validation_loss"]["value"] == pytest.approx(E + A * 3e6**-ALPHA, rel=0.01)
    assert answers["step_time"]["value"] == pytest.approx(2e-3 + 50e-9 * 3e6, rel=0.02)


@pytest.mark.slow
def test_times_that_were_all_shared_are_refused_with_the_command_that_measures_them(command, tmp_path: Path) -> None:
    rows = planted(timing_exclusive=False)
    write_study(tmp_path / "planted", rows)
    answers = json.loads(command("predict", "planted", "--params", "1e6", "--json")[1])["answers"]
    for name in ("step_time", "training_time"):
        assert answers[name]["value"] is None
        assert answers[name]["reason"].startswith("all 14 step times were measured while other work shared the machine")
        assert ": run the study with `--jobs 1 --results NEW` on it alone" in answers[name]["reason"]
    assert answers["memory"]["value"] is not None
    for row in rows[:1]:
        row["timing_exclusive"] = True
    write_study(tmp_path / "partly", rows)
    answers = json.loads(command("predict", "partly", "--params", "1e6", "--json")[1])["answers"]
    assert "13 of 14" in answers["step_time"]["reason"]


@pytest.mark.slow
def test_what_was_not_measured_is_refused_with_its_reason(command, tmp_path: Path) -> None:
    write_study(tmp_path / "planted", planted(checkpoint_bytes=None, memory_tracked_peak_bytes=None))
    answers = json.loads(command("predict", "planted", "--params", "3e6", "--json")[1])["answers"]
    assert answers["checkpoint"]["reason"] == "checkpoint sizes were not measured"
    assert answers["memory"]["reason"] == "memory was not measured"
    write_study(tmp_path / "few", planted()[:4])
    code, out, _ = command("predict", "few", "--params", "3e6")
    assert code == 0  # the data are known
    assert "validation loss: refused: 2 configurations for 3 free parameters of power" in out


@pytest.mark.slow
def test_a_fit_answers_the_loss_alone_and_as_the_fit_does(command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    loss = (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * np.exp(0.002 * rng.standard_normal(25))
    pd.DataFrame({"params": n, "tokens": d, "nats": loss}).to_csv(tmp_path / "p.csv", index=False)
    assert command("fit", "p.csv", "--law", "chinchilla", "--loss-column", "nats", "--output", "f.json")[0] == 0
    code, out, _ = command("predict", "f.json", "--params", "7e10", "--tokens", "1.4e12", "--json")
    assert code == 0
    answers = json.loads(out)["answers"]
    fitted, at = fit({"params": n, "tokens": d, "loss": loss}, "chinchilla"), {"params": [7e10], "tokens": [1.4e12]}
    low, high = fitted.prediction_interval(at, kind="new")
    answer = answers["nats"]
    assert (answer["value"], answer["low"], answer["high"]) == (fitted.predict(at)[0], low[0], high[0])
    assert answer["beyond"] == pytest.approx(7)
    for name in ("step_time", "memory", "compute", "checkpoint", "energy"):
        assert answers[name]["value"] is None
        assert "a fit has no times, bytes or FLOPs" in answers[name]["reason"]
    _, out, _ = command("predict", "f.json", "--params", "7e10", "--tokens", "1.4e12")
    assert "step time, memory, compute, checkpoint, energy: refused: a fit has no times, bytes or FLOPs" in out


def test_an_input_that_a_law_does_not_take_is_said(command) -> None:
    n = np.geomspace(1e6, 1e9, 8)
    pd.DataFrame({"params": n, "loss": 1.7 + 40 * n**-0.3}).to_csv("p.csv", index=False)
    assert command("fit", "p.csv", "--output", "f.json")[0] == 0
    code, out, err = command("predict", "f.json", "--params", "1e9", "--tokens", "1e12", "--input", "u=3")
    assert code == 0
    assert err.splitlines() == [
        f"{option} is not used: power predicts from params" for option in ("--tokens", "--input u")
    ]
    assert "data: refused: power does not depend on tokens" in out


@pytest.fixture(scope="module")
def misread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two studies, a fit of a law of two inputs, and fits that cannot be read."""
    folder = tmp_path_factory.mktemp("misread")
    for name in ("a", "b"):
        write_study(folder / "results" / name, planted())
    (folder / "no.json").write_text("{}")
    n, d = (axis.ravel().tolist() for axis in np.meshgrid([1e6, 1e7, 1e8], [1e8, 1e9, 1e10]))
    loss = [1.7 + 400 * a**-0.34 + 410 * b**-0.28 for a, b in zip(n, d, strict=True)]
    two = {"law": "chinchilla", "points": {"params": n, "tokens": d, "loss": loss}}
    settings = {"loss": "huber", "delta": 1e-3, "space": "log", "fixed": {}}
    (folder / "two.json").write_text(json.dumps(two | settings))
    (folder / "bad.json").write_text(json.dumps({"law": "power", "points": {}} | settings))
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere", "--params", "1e6"), "nowhere: no results here"),
        (("absent.json", "--params", "1e6"), "absent.json: no such file"),
        (("no.json", "--params", "1e6"), "no.json: no law, points"),
        (("bad.json", "--params", "1e6"), "bad.json: the fit in it cannot be made again (column 'params' is missing"),
        (("results", "--params", "-3"), "--params -3: a number from 1e-30 to 1e+30 is needed"),
        (("two.json", "--params", "1e6"), "two.json: chinchilla predicts from params and tokens; give --tokens"),
        (("results/a", "--params", "1e6", "--input", "u=3"), "results/a: --input is for fitted laws"),
        (("results", "--params", "1e300"), "--params 1e+300: a number from"),
        (("results", "--params", "1e6", "--tokens", "nan"), "--tokens nan: a number from"),
        (("results", "--params", "1e6"), "results: holds 2 studies; name one, such as results/a (or b)"),
        (("results/a", "--params", "1e6", "--where", "family == 'mlp'"), "no trial that --where"),
        (("results/a", "--params", "1e6", "--where", "famly == 'mlp'"), "did you mean 'family'?"),
        (("results/a", "--params", "1e6", "--where", "exec('1') == family"), "is not allowed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, monkeypatch, misread: Path, arguments, expected: str) -> None:
    monkeypatch.chdir(misread)
    code, _, err = command("predict", *arguments)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert expected in line
