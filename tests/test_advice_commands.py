"""`next`, `worth`, `tune` and `fit --law A,B`: planted answers come back, and wrong input is exit code 2."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import CHINCHILLA, COLUMNS, named, planted, surface, write_study

from scalebench.advice import compute_multiplier, next_trial, optimum_law
from scalebench.advice.design import candidate_grid
from scalebench.cli.commands.design import print_worth
from scalebench.laws import Refits, fit


@pytest.mark.slow
def test_next_is_the_trial_of_the_package(command) -> None:
    table = surface(0.005)
    table.to_csv("p.csv", index=False)
    command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--output", "f.json")
    target = ("--predict", "params=1e11,tokens=1e13")
    code, out, _ = command("next", "f.json", *target, "--json")
    assert code == 0
    output, fitted = json.loads(out), fit(named(table), "chinchilla")
    expected = next_trial(fitted, candidate_grid(fitted, 9, 1.0), {"params": 1e11, "tokens": 1e13})
    assert output["chosen"][0]["inputs"] == pytest.approx(expected.chosen[0].inputs)
    assert output["narrowing"] == pytest.approx(expected.narrowing)
    assert output["narrowing_interval"] == pytest.approx(expected.narrowing_interval)
    from_points = command("next", "p.csv", *COLUMNS, "--law", "chinchilla", *target, "--json")
    assert json.loads(from_points[1])["chosen"] == output["chosen"]


@pytest.mark.usefixtures("few_refits")
def test_next_keeps_to_a_budget_and_to_the_candidates(command) -> None:
    table = surface(0.005)
    table.to_csv("p.csv", index=False)
    pd.DataFrame({"params": [1e8, 1e9, 1e10], "tokens": [1e10, 2e10, 1e12]}).to_csv("c.csv", index=False)
    request = ("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params=1e11,tokens=1e13")
    code, out, _ = command(*request, "--candidates", "c.csv", "--budget", "1.5e20", "--json")
    assert code == 0
    chosen = json.loads(out)["chosen"]
    assert {candidate["row"] for candidate in chosen} == {0, 1}
    code, out, _ = command(*request, "--candidates", "c.csv", "--budget", "1.5e20")
    assert "run 2 trials, " in out
    assert "expected interval afterwards: " in out


@pytest.mark.slow
def test_next_names_a_handful_and_says_what_more_would_do(command) -> None:
    surface(0.005).to_csv("p.csv", index=False)
    request = (
        "next",
        "p.csv",
        *COLUMNS,
        "--law",
        "chinchilla",
        "--predict",
        "params=1e11,tokens=1e13",
        "--budget",
        "1e22",
    )
    few, three = (json.loads(command(*request, *most, "--json")[1]) for most in ((), ("--most", "3")))
    assert (len(few["chosen"]), len(three["chosen"])) == (5, 3)
    count, narrowing = few["unlimited"]
    assert narrowing < few["narrowing"] < three["narrowing"] < 1
    _, out, _ = command(*request)
    assert f"{count} trials within the same budget" in out
    assert f"×{narrowing:.3g} (--most {count})" in out
    many = json.loads(command(*request, "--most", str(count), "--json")[1])
    assert many["narrowing"] <= narrowing * (1 + 1e-9)


@pytest.mark.slow
def test_worth_is_the_multiplier_of_the_package(command) -> None:
    rng, flops = np.random.default_rng(0), np.geomspace(1e15, 1e19, 8).repeat(2)
    points = {}
    for name, saving in (("old", 1.0), ("new", 1.6)):
        loss = (1.8 + 2 * (saving * flops / 1e15) ** -0.15) * np.exp(0.001 * rng.standard_normal(16))
        points[name] = {"x": flops, "y": loss}
        pd.DataFrame({"flops": flops, "loss": loss}).to_csv(f"{name}.csv", index=False)
    code, out, _ = command("worth", "old.csv", "new.csv", "--json")
    assert code == 0
    output = json.loads(out)
    expected = compute_multiplier(fit(points["old"]), fit(points["new"]))
    assert output["multiplier"] == pytest.approx(expected.multiplier, rel=1e-9)
    assert output["interval"][0] < 1.6 < output["interval"][1]
    assert "the change saves compute" in command("worth", "old.csv", "new.csv")[1]
    assert "no significant difference" in command("worth", "old.csv", "old.csv")[1]


def test_worth_says_on_which_side_of_the_data_a_loss_lies(capsys) -> None:
    flops = np.geomspace(1e15, 1e19, 8)
    fitted = fit({"x": flops, "y": 1.8 + 2 * (flops / 1e15) ** -0.15})
    for loss, place in ((5.0, "1/23.0 of its smallest compute"), (2.2, "×4.57 its largest compute")):
        print_worth(compute_multiplier(fitted, fitted, loss, n=20))
        assert f"the baseline reaches that loss at {place}: measure closer to it" in capsys.readouterr().out


@pytest.mark.slow
def test_worth_and_next_draw_as_the_fits_were_asked_to(command) -> None:
    rng, flops = np.random.default_rng(0), np.geomspace(1e15, 1e19, 8).repeat(2)
    fits = {}
    for name, saving, refits in (("old", 1.0, Refits("wild", 300)), ("new", 1.6, Refits("parametric", 200))):
        loss = (1.8 + 2 * (saving * flops / 1e15) ** -0.15) * np.exp(0.001 * rng.standard_normal(16))
        pd.DataFrame({"C": flops, "loss": loss}).to_csv(f"{name}.csv", index=False)
        request = ("--method", refits.method, "--bootstrap", str(refits.n))
        assert command("fit", f"{name}.csv", "--x-column", "C", *request, "--output", f"{name}.json")[0] == 0
        fits[name] = replace(fit({"x": flops, "y": loss}), refits=refits)
    output = json.loads(command("worth", "old.json", "new.json", "--json")[1])
    expected = compute_multiplier(fits["old"], fits["new"])
    assert output["interval"] == pytest.approx(list(expected.interval))
    assert output["method"].startswith("wild bootstrap of 8 configurations")
    assert output["method"].endswith("parametric bootstrap, t with 5 degrees of freedom")
    output = json.loads(command("next", "old.json", "--predict", "params=1e20", "--json")[1])
    expected_trial = next_trial(fits["old"], candidate_grid(fits["old"], 9, 1.0), {"params": 1e20})
    assert output["narrowing_interval"] == pytest.approx(expected_trial.narrowing_interval)
    drawn_otherwise = replace(fits["old"], refits=Refits("parametric", 300))
    other = next_trial(drawn_otherwise, candidate_grid(fits["old"], 9, 1.0), {"params": 1e20})
    assert output["narrowing_interval"] != pytest.approx(other.narrowing_interval)


@pytest.mark.slow
def test_worth_of_results_reads_their_flops(command, tmp_path: Path) -> None:
    for name, factor in (("old", 1.0), ("new", 1.0)):
        rows = [row | {"flops_per_step": factor * row["flops_per_step"]} for row in planted()]
        write_study(tmp_path / name, rows)
    code, out, _ = command("worth", "old", "new", "--json")
    assert code == 0
    assert json.loads(out)["multiplier"] == pytest.approx(1.0, rel=1e-6)


def test_tune_names_sweeps_counted_as_beyond_an_edge(command) -> None:
    grid, scatter = 1e-2 * 2.0 ** np.arange(8), np.exp([0.2, -0.2, 0.2, -0.2, 0.2, -1.0])
    best = 1.1 * grid[0] * np.sqrt(2) * 2.0 ** np.arange(6)[::-1] * scatter
    loss = 2 + 0.1 * np.log(grid / best[:, None]) ** 2
    sizes = np.repeat(np.geomspace(1e4, 1e6, 6), 8)
    pd.DataFrame({"params": sizes, "lr": np.tile(grid, 6), "loss": loss.ravel()}).to_csv("p.csv", index=False)
    text = " ".join(command("tune", "p.csv", "--optimised", "lr", "--against", "params")[1].split())
    assert "params 1.00 M: counted as beyond its edge: the lowest loss" in text
    assert "left out" not in text


def test_tune_is_the_law_of_the_package(command) -> None:
    rng = np.random.default_rng(0)
    size, rate = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e-3, 1e-1, 9)))
    off = np.log(rate / (0.03 * (size / 1e4) ** -0.25))
    table = pd.DataFrame({"params": size, "learning_rate": rate, "loss": 3 + 0.05 * off**2})
    table["loss"] += 0.002 * rng.standard_normal(45)
    table.to_csv("p.csv", index=False)
    code, out, _ = command("tune", "p.csv", "--against", "params", "--at", "params=1e7", "--json")
    assert code == 0
    (law,) = json.loads(out)["laws"]
    expected = optimum_law({name: table[name].to_numpy() for name in table})
    assert law["exponents"] == pytest.approx(expected.exponents)
    assert law["at"]["value"] == pytest.approx(expected.predict(params=1e7))
    assert law["at"]["interval"] == pytest.approx(list(expected.prediction_interval(params=1e7)))
    out = command("tune", "p.csv", "--against", "params")[1]
    assert "learning_rate* = " in out
    low, high = (float(part.replace(",", "")) for part in re.findall(r"constant +\S+ +(\S+) to (\S+)", out)[0])
    assert 0 < low < expected.constant < high  # a positive constant's lower end is not printed as 0
    assert (low, high) == pytest.approx(expected.interval("constant"), rel=5e-3)  # three digits each


def test_tune_names_the_diverged_trials_that_bound_a_sweep(command, tmp_path: Path) -> None:
    trials = [
        {**row, "trial_id": f"{i:08x}{row['trial_id'][8:]}{k}", "learning_rate": rate}
        | ({"status": "diverged", "validation_loss_nats": None} if rate >= 1 else {"validation_loss_nats": 3 - rate})
        for i, row in enumerate(planted()[::2])
        for k, rate in enumerate((0.001, 0.003, 0.01, 1.0, 3.0))
    ]
    write_study(tmp_path / "sweep", trials, {"train.learning_rate": []})
    code, _, err = command("tune", "sweep")
    assert code == 2
    assert (
        "sweep: 14 diverged trials left out, with learning_rate from 1 to 3: where the best value is at an edge" in err
    )
    assert "left out" not in command("tune", "sweep", "--where", "learning_rate < 1")[2]
    for name in ("trials.csv", "trials.parquet"):
        assert command("export", "sweep", "-o", name)[0] == 0
        assert err.replace("sweep: ", f"{name}: ") == command("tune", name)[2]
        assert "left out" not in command("tune", name, "--where", "learning_rate < 1")[2]


@pytest.mark.slow
@pytest.mark.parametrize("law", ["auto", "chinchilla,kaplan"])
def test_fit_chooses_the_law_that_predicts_best(command, tmp_path: Path, law: str) -> None:
    surface(0.002).to_csv("p.csv", index=False)
    code, out, _ = command("fit", "p.csv", *COLUMNS, "--law", law, "--bootstrap", "50", "--output", "f.json")
    assert code == 0
    document = json.loads((tmp_path / "f.json").read_text())
    ranking = [ranked["law"] for ranked in document["choice"]["ranking"]]
    assert document["law"] == ranking[0]
    assert "kaplan" in ranking[1:]  # it has no floor, and the surface does
    assert "lowest error on points held out" in out


@pytest.mark.usefixtures("few_refits")
def test_predict_of_a_roofline_needs_its_inputs_only(command) -> None:
    flops, moved = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e9, 1e12, 4), np.geomspace(1e6, 1e9, 4)))
    table = pd.DataFrame({"flops": flops, "bytes": moved, "time": 1e-4 + flops / 1e12 + moved / 2e9})
    table["time"] *= np.exp(0.01 * np.random.default_rng(0).standard_normal(16))
    table.to_csv("t.csv", index=False)
    arguments = ("fit", "t.csv", "--law", "roofline", "--fix", "F=1e12", "--output", "f.json")
    assert command(*arguments)[0] == 0
    code, out, _ = command("predict", "f.json", "--input", "flops=1e12", "--input", "bytes=1e9", "--json")
    assert code == 0
    assert json.loads(out)["answers"]["time"]["value"] == pytest.approx(1.5, rel=0.02)
    assert (
        "prediction at flops 1e+12, bytes 1e+09"
        in command("predict", "f.json", "--input", "flops=1e12", "--input", "bytes=1e9")[1]
    )
    code, _, err = command("predict", "f.json", "--input", "flops=1e12")
    assert (code, err) == (2, "f.json: roofline predicts from flops and bytes; give --input bytes=NUMBER\n")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "resample"])
def test_a_rate_that_the_points_do_not_resolve_is_said_to_be_none(command, method: str) -> None:
    flops, moved = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e9, 1e12, 4), np.geomspace(1e6, 1e9, 4)))
    table = pd.DataFrame({"flops": flops, "bytes": moved, "time": 1e-4 + flops / 1e12})
    table["time"] *= np.exp(0.01 * np.random.default_rng(1).standard_normal(16)) * (moved / 1e8) ** -0.002
    table.to_csv("t.csv", index=False)
    code, out, err = command("fit", "t.csv", "--law", "roofline", "--method", method, "--output", "f.json")
    assert code == 0
    assert "another shape" in err  # times that fall with the bytes, which no rate makes them do
    (line,) = (line for line in out.splitlines() if line.startswith("W "))
    assert line.split()[1:4] == ["not", "resolved", "above"]
    assert "at its bound: one-sided" in line
    assert "bounds      1 / W at its bound 0: the points do not resolve it" in out
    assert "e+30" not in out
    document = json.loads(Path("f.json").read_text())
    low, high = document["intervals"]["W"]
    assert (document["parameters"]["W"], high, document["bounds_hit"]) == (None, None, ["W"])
    assert 1e10 < low < 1e16
    assert document["unresolved"] == {"W": "1 / W is at its bound 0: its interval has a lower end only"}
    at = ("--input", "flops=1e12", "--input", "bytes=1e9")
    code, out, _ = command("predict", "f.json", *at)
    assert code == 0
    assert "W not resolved: 1 / W is at its bound 0" in out
    assert "rolling hold-out of time: " in out
    answer = json.loads(command("predict", "f.json", *at, "--json")[1])["answers"]["time"]
    F, t0 = (document["parameters"][name] for name in ("F", "t0"))
    assert answer["value"] == pytest.approx(t0 + 1e12 / F, rel=1e-9)
    assert answer["low"] < answer["value"] < answer["high"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("optimal", "p.csv", *COLUMNS, "--budget", "-1"), "--budget -1: a positive number"),
        (("optimal", "p.csv", "--loss-column", "loss"), "column unknown 'loss'"),
        (("optimal", "absent.csv"), "absent.csv: "),
        (("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params=1e11"), "needs params=NUMBER,tokens="),
        (("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params"), "expected NAME=NUMBER"),
        (("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params=1e9,tokens=1e9", "--budget", "1"),
         "the cheapest candidate costs"),
        (("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params=1e9,tokens=1e9", "--most", "3"),
         "--most 3 requires --budget"),
        (("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params=1e9,tokens=1e9", "--most", "0"),
         "--most 0: at least 1 is needed"),
        (("next", "p.csv", *COLUMNS, "--predict", "params=1e9,tokens=1e9"), "power needs params=NUMBER, or name"),
        (("next", "p.csv", *COLUMNS, "--predict", "params=1e9", "--budget", "1e20"), "give --candidates FILE with"),
        (("next", "p.csv", *COLUMNS, "--predict", "params=1e9", "--budget", "-1"), "a positive number of FLOPs"),
        (("worth", "p.csv", "p.csv"), "; name it with --flops-column; --law chinchilla takes params and tokens"),
        (("predict", "p.csv", "--params", "1e9"), "`scalebench fit p.csv --output fit.json`, then `scalebench predict"),
        (("optimal", "p.csv", "--loss-column", "L"), "is missing; columns given: loss; two of --params-column, "),
        (("tune", "p.csv", "--against", "N", "--loss-column", "L"), "column unknown 'learning_rate'"),
        (("tune", "p.csv", "--loss-column", "L"), "; name it with --against\np.csv: column unknown 'learning_rate'"),
        (("tune", "p.csv", "--against", "N", "--optimised", "D", "--loss-column", "L"), "have an interior optimum"),
        (("tune", "p.csv", "--at", "N=0"), "--at N=0: a positive finite number is needed"),
        (("tune", "p.csv", "--at", "N=1,D=nan"), "--at D=nan: a positive finite number is needed"),
        (("next", "p.csv", *COLUMNS, "--predict", "params=-1"), "--predict params=-1: a positive finite number"),
        (("tune", "p.csv", "--against", "N", "--optimised", ",", "--loss-column", "L"), "--optimised: names no column"),
        (("tune", "p.csv", "--against", "N", "--optimised", "D,D", "--loss-column", "L"), "'D' is named twice"),
        (("tune", "p.csv", "--against", "N", "--optimised", "D,N", "--loss-column", "L"), "'N' is named twice"),
        (("fit", "p.csv", *COLUMNS, "--law", "power,chinchilla"), "laws are compared on the same inputs"),
        (("fit", "p.csv", *COLUMNS, "--law", "chinchilla,nothing"), "nothing"),
    ],
)  # fmt: skip
def test_bad_input_is_exit_code_2(command, arguments, expected: str) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    code, out, err = command(*arguments)
    assert code == 2
    assert expected in out + err
    assert "Traceback" not in err
