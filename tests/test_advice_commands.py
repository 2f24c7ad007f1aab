"""`optimal`, `next`, `worth`, `tune` and `fit --law A,B`: planted answers come back, and wrong input is exit code 2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import CHINCHILLA, PLANTED, planted, surface, write_study

from scalebench.advice import compute_multiplier, isoflop, next_trial, optimum_law, parametric
from scalebench.advice.design import candidate_grid
from scalebench.laws import LAWS, Refits, fit

COLUMNS = ("--params-column", "N", "--tokens-column", "D", "--loss-column", "L")


def named(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {role: table[name].to_numpy() for role, name in {"params": "N", "tokens": "D", "loss": "L"}.items()}


def budgets(noise: float = 0.0005) -> pd.DataFrame:
    """IsoFLOP grids about the optimum of the planted surface: 5 budgets of 9 sizes."""
    total = PLANTED["alpha"] + PLANTED["beta"]
    G = (PLANTED["alpha"] * PLANTED["A"] / (PLANTED["beta"] * PLANTED["B"])) ** (1 / total)
    C = np.geomspace(1e18, 1e21, 5)[:, None]
    n = G * (C / 6) ** (PLANTED["beta"] / total) * np.exp(np.linspace(-1, 1, 9))
    n, d = n.ravel(), (C / 6 / n).ravel()
    loss = PLANTED["E"] + PLANTED["A"] * n ** -PLANTED["alpha"] + PLANTED["B"] * d ** -PLANTED["beta"]
    return pd.DataFrame({"N": n, "D": d, "L": loss * np.exp(noise * np.random.default_rng(0).standard_normal(45))})


def test_optimal_gives_each_approach_that_the_points_carry(command) -> None:
    table = budgets()
    table.to_csv("p.csv", index=False)
    code, out, _ = command("optimal", "p.csv", *COLUMNS, "--budget", "1e22", "--json")
    assert code == 0
    found = json.loads(out)
    second, third = found["allocations"]
    assert (second["approach"], third["approach"]) == (2, 3)
    assert second["a"] == isoflop(named(table)).a
    assert third["a"] == parametric(fit(named(table), "chinchilla")).a
    a = PLANTED["beta"] / (PLANTED["alpha"] + PLANTED["beta"])
    assert third["intervals"]["a"][0] < a < third["intervals"]["a"][1]
    (at,) = third["at"]
    assert at["params_interval"][0] < at["params"] < at["params_interval"][1]
    assert 6 * at["params"] * at["tokens"] == pytest.approx(1e22, rel=1e-6)
    assert found["refused"] == [{"approach": 1, "reason": found["refused"][0]["reason"]}]
    assert "column 'run' is missing" in found["refused"][0]["reason"]
    counted = found["conventions"]["rows"]
    assert (counted[0]["counting_params"], counted[0]["counting_flops"]) == ("total", "6ND")
    assert counted[0]["a"] == third["a"]


def repeated() -> pd.DataFrame:
    """Points of the data-constrained law as Muennighoff et al. 2023 fitted it, 1 to 60 epochs."""
    law = {"E": 1.87, "A": 521.0, "alpha": 0.353, "B": 1488.0, "beta": 0.353, "R_D": 15.4, "R_N": 5.3}
    U, epochs, n = (axis.ravel() for axis in np.meshgrid([1e9, 1e10], [1, 4, 16, 60], np.geomspace(1e8, 1e10, 6)))
    logs = {"params": np.log(n), "tokens": np.log(epochs * U), "unique_tokens": np.log(U)}
    scatter = np.exp(0.002 * np.random.default_rng(0).standard_normal(48))
    loss = LAWS["data_constrained"].predict(law, logs)[0] * scatter
    return pd.DataFrame({"N": n, "D": epochs * U, "U": U, "L": loss})


@pytest.mark.slow
def test_optimal_for_limited_data(command) -> None:
    table = repeated()
    table.to_csv("p.csv", index=False)
    fewer = ("--unique-tokens", "1e9", "--budget", "1e21")
    law = ("--law", "data_constrained", "--column", "unique_tokens=U", "--bootstrap", "50")
    assert command("fit", "p.csv", *COLUMNS, *law, "--output", "f.json")[0] == 0
    code, out, _ = command("optimal", "f.json", *fewer, "--json")
    assert code == 0
    (best,) = json.loads(out)["optima"]
    assert best["params"] * best["tokens"] == pytest.approx(1e21 / 6)
    assert best["epochs"] == pytest.approx(best["tokens"] / 1e9)
    columns = {role: table[name] for role, name in {"params": "N", "tokens": "D", "unique_tokens": "U"}.items()}
    fitted = fit({**columns, "loss": table["L"]}, "data_constrained")
    nearby = best["params"] * np.exp(np.linspace(-1, 1, 201))
    losses = fitted.predict(params=nearby, tokens=1e21 / 6 / nearby, unique_tokens=np.full(201, 1e9))
    assert best["loss"] == pytest.approx(losses.min(), rel=1e-9)
    low, high = best["intervals"]["epochs"]
    assert low < best["epochs"] < high
    code, out, _ = command("optimal", "f.json", *fewer)
    assert code == 0
    assert "unique tokens" in out
    assert f"{best['epochs']:.4g} ({low:.4g} to {high:.4g})" in out


def test_optimal_for_limited_data_fits_points_and_refuses_what_it_cannot_answer(command) -> None:
    repeated().to_csv("p.csv", index=False)
    code, _, err = command("optimal", "p.csv", *COLUMNS, "--unique-tokens", "1e9")
    assert (code, "'unique_tokens'" in err) == (2, True)
    named = (*COLUMNS, "--unique-tokens-column", "U", "--unique-tokens", "-1", "--budget", "1e21")
    code, _, err = command("optimal", "p.csv", *named)
    assert (code, err) == (2, "p.csv: flops is 1e+21, unique_tokens is -1.0; both need a positive number\n")


def test_optimal_prints_tables_and_takes_a_convention(command) -> None:
    table = budgets()
    table.assign(small=0.8 * table["N"], C=6.5 * table["N"] * table["D"]).to_csv("p.csv", index=False)
    others = ("--non-embedding-column", "small", "--flops-column", "C", "--count-params", "non_embedding")
    code, out, _ = command("optimal", "p.csv", *COLUMNS, *others, "--count-flops", "exact", "--approach", "3")
    assert code == 0
    assert "N non_embedding, C exact" in out
    assert "by counting convention" in out
    assert out.count("non_embedding") >= 3
    assert "refused" not in out.replace("refused\n", "")  # the head of a column aside


@pytest.mark.slow
def test_budgets_left_out_are_told_by_kind(command) -> None:
    edge = budgets()[:9].assign(D=lambda t: 0.01 * t["D"], L=lambda t: 3 + 0.1 * np.log(t["N"] / 1e6))
    table = pd.concat([budgets(), surface(0.001)[["N", "D", "L"]], edge])  # the grid has budgets of one to five sizes
    table.to_csv("p.csv", index=False)
    asked = ("optimal", "p.csv", *COLUMNS, "--approach", "2")
    refused = json.loads(command(*asked, "--json")[1])["allocations"][0]["refused"]
    few = [one for one in refused if "for a parabola" in one["reason"]]
    assert len(refused) > len(few) > 2
    lines = [line for line in command(*asked)[1].splitlines() if "left out" in line]
    assert len(lines) < len(refused)
    (line,) = (line for line in lines if "for a parabola" in line)
    assert f" and {len(few) - 1} more: left out: " in line


def test_parameters_of_one_count_are_not_passed_off_as_the_other(command) -> None:
    table = budgets()
    table.assign(C=6 * table["N"] * table["D"]).to_csv("p.csv", index=False)
    out = command("optimal", "p.csv", *COLUMNS, "--flops-column", "C", "--approach", "3", "--json")[1]
    rows = {(row["counting_params"], row["counting_flops"]): row for row in json.loads(out)["conventions"]["rows"]}
    assert rows["total", "6ND"]["N"] == pytest.approx(rows["total", "exact"]["N"], rel=1e-3)
    for flops in ("6ND", "exact"):
        assert rows["non_embedding", flops]["N"] is None
        assert "column 'params_non_embedding' is missing" in rows["non_embedding", flops]["refused"]


def test_approach_1_reads_training_curves(command) -> None:
    rows = []
    for n in np.geomspace(1e6, 1e9, 13):
        d = np.geomspace(1e7, 1e12, 60)
        loss = PLANTED["E"] + PLANTED["A"] * n ** -PLANTED["alpha"] + PLANTED["B"] * d ** -PLANTED["beta"]
        rows.append(pd.DataFrame({"N": n, "D": d, "L": loss, "name": f"run {n:.0f}"}))
    pd.concat(rows).to_csv("p.csv", index=False)
    code, out, _ = command("optimal", "p.csv", *COLUMNS, "--run-column", "name", "--approach", "1", "--json")
    assert code == 0
    (first,) = json.loads(out)["allocations"]
    assert first["a"] == pytest.approx(PLANTED["beta"] / (PLANTED["alpha"] + PLANTED["beta"]), abs=0.03)
    assert first["intervals"]["a"] is not None


@pytest.mark.slow
def test_next_is_the_trial_of_the_package(command) -> None:
    table = surface(0.005)
    table.to_csv("p.csv", index=False)
    command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--output", "f.json")
    target = ("--predict", "params=1e11,tokens=1e13")
    code, out, _ = command("next", "f.json", *target, "--json")
    assert code == 0
    found, fitted = json.loads(out), fit(named(table), "chinchilla")
    expected = next_trial(fitted, candidate_grid(fitted, 9, 1.0), {"params": 1e11, "tokens": 1e13})
    assert found["chosen"][0]["inputs"] == pytest.approx(expected.chosen[0].inputs)
    assert found["narrowing"] == pytest.approx(expected.narrowing)
    assert found["narrowing_interval"] == pytest.approx(expected.narrowing_interval)
    from_points = command("next", "p.csv", *COLUMNS, "--law", "chinchilla", *target, "--json")
    assert json.loads(from_points[1])["chosen"] == found["chosen"]


def test_next_keeps_to_a_budget_and_to_the_candidates(command) -> None:
    table = surface(0.005)
    table.to_csv("p.csv", index=False)
    pd.DataFrame({"params": [1e8, 1e9, 1e10], "tokens": [1e10, 2e10, 1e12]}).to_csv("c.csv", index=False)
    asked = ("next", "p.csv", *COLUMNS, "--law", "chinchilla", "--predict", "params=1e11,tokens=1e13")
    code, out, _ = command(*asked, "--candidates", "c.csv", "--budget", "1.5e20", "--json")
    assert code == 0
    chosen = json.loads(out)["chosen"]
    assert {one["row"] for one in chosen} == {0, 1}
    code, out, _ = command(*asked, "--candidates", "c.csv", "--budget", "1.5e20")
    assert "run 2 trials, " in out
    assert "expected interval afterwards: " in out


@pytest.mark.slow
def test_next_names_a_handful_and_says_what_more_would_do(command) -> None:
    surface(0.005).to_csv("p.csv", index=False)
    asked = (
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
    few, three = (json.loads(command(*asked, *most, "--json")[1]) for most in ((), ("--most", "3")))
    assert (len(few["chosen"]), len(three["chosen"])) == (5, 3)
    count, narrowing = few["unlimited"]
    assert narrowing < few["narrowing"] < three["narrowing"] < 1
    _, out, _ = command(*asked)
    assert f"{count} trials within the same budget" in out
    assert f"×{narrowing:.3g} (--most {count})" in out
    many = json.loads(command(*asked, "--most", str(count), "--json")[1])
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
    found = json.loads(out)
    expected = compute_multiplier(fit(points["old"]), fit(points["new"]))
    assert found["multiplier"] == pytest.approx(expected.multiplier, rel=1e-9)
    assert found["interval"][0] < 1.6 < found["interval"][1]
    assert "the change saves compute" in command("worth", "old.csv", "new.csv")[1]
    assert "no significant difference" in command("worth", "old.csv", "old.csv")[1]


@pytest.mark.slow
def test_worth_and_next_draw_as_the_fits_were_asked_to(command) -> None:
    rng, flops = np.random.default_rng(0), np.geomspace(1e15, 1e19, 8).repeat(2)
    fits = {}
    for name, saving, refits in (("old", 1.0, Refits("wild", 300)), ("new", 1.6, Refits("parametric", 200))):
        loss = (1.8 + 2 * (saving * flops / 1e15) ** -0.15) * np.exp(0.001 * rng.standard_normal(16))
        pd.DataFrame({"C": flops, "loss": loss}).to_csv(f"{name}.csv", index=False)
        asked = ("--method", refits.method, "--bootstrap", str(refits.n))
        assert command("fit", f"{name}.csv", "--x-column", "C", *asked, "--output", f"{name}.json")[0] == 0
        fits[name] = replace(fit({"x": flops, "y": loss}), refits=refits)
    found = json.loads(command("worth", "old.json", "new.json", "--json")[1])
    expected = compute_multiplier(fits["old"], fits["new"])
    assert found["interval"] == pytest.approx(list(expected.interval))
    assert found["method"].startswith("wild bootstrap of 8 configurations")
    assert found["method"].endswith("parametric bootstrap, t with 5 degrees of freedom")
    found = json.loads(command("next", "old.json", "--predict", "params=1e20", "--json")[1])
    expected_trial = next_trial(fits["old"], candidate_grid(fits["old"], 9, 1.0), {"params": 1e20})
    assert found["narrowing_interval"] == pytest.approx(expected_trial.narrowing_interval)
    drawn_otherwise = replace(fits["old"], refits=Refits("parametric", 300))
    other = next_trial(drawn_otherwise, candidate_grid(fits["old"], 9, 1.0), {"params": 1e20})
    assert found["narrowing_interval"] != pytest.approx(other.narrowing_interval)


def test_worth_of_results_reads_their_flops(command, tmp_path: Path) -> None:
    for name, factor in (("old", 1.0), ("new", 1.0)):
        rows = [row | {"flops_per_step": factor * row["flops_per_step"]} for row in planted()]
        write_study(tmp_path / name, rows)
    code, out, _ = command("worth", "old", "new", "--json")
    assert code == 0
    assert json.loads(out)["multiplier"] == pytest.approx(1.0, rel=1e-6)


def test_tune_is_the_law_of_the_package(command) -> None:
    rng = np.random.default_rng(0)
    size, rate = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e-3, 1e-1, 9)))
    off = np.log(rate / (0.03 * (size / 1e4) ** -0.25))
    table = pd.DataFrame({"params": size, "learning_rate": rate, "loss": 3 + 0.05 * off**2})
    table["loss"] += 0.002 * rng.standard_normal(45)
    table.to_csv("p.csv", index=False)
    code, out, _ = command("tune", "p.csv", "--against", "params", "--at", "params=1e7", "--json")
    assert code == 0
    found, expected = json.loads(out), optimum_law({name: table[name].to_numpy() for name in table})
    assert found["exponents"] == pytest.approx(expected.exponents)
    assert found["at"]["value"] == pytest.approx(expected.predict(params=1e7))
    assert found["at"]["interval"] == pytest.approx(list(expected.prediction_interval(params=1e7)))
    assert "learning_rate* = " in command("tune", "p.csv", "--against", "params")[1]


@pytest.mark.slow
@pytest.mark.parametrize("law", ["auto", "chinchilla,kaplan"])
def test_fit_chooses_the_law_that_predicts_best(command, tmp_path: Path, law: str) -> None:
    surface(0.002).to_csv("p.csv", index=False)
    code, out, _ = command("fit", "p.csv", *COLUMNS, "--law", law, "--bootstrap", "50", "--output", "f.json")
    assert code == 0
    document = json.loads((tmp_path / "f.json").read_text())
    ranking = [one["law"] for one in document["choice"]["ranking"]]
    assert document["law"] == ranking[0]
    assert "kaplan" in ranking[1:]  # it has no floor, and the surface does
    assert "lowest error on points held out" in out


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
    assert (code, err) == (0, "")
    (line,) = (line for line in out.splitlines() if line.startswith("W "))
    assert line.split()[1:4] == ["not", "resolved", "above"]
    assert "at its bound: one-sided" in line
    assert "bounds      1 / W at its bound 0: the points do not resolve it" in out
    assert "e+30" not in out
    found = json.loads(Path("f.json").read_text())
    low, high = found["intervals"]["W"]
    assert (found["parameters"]["W"], high, found["bounds_hit"]) == (None, None, ["W"])
    assert 1e10 < low < 1e16
    assert found["unresolved"] == {"W": "1 / W is at its bound 0: its interval has a lower end only"}
    at = ("--input", "flops=1e12", "--input", "bytes=1e9")
    code, out, _ = command("predict", "f.json", *at)
    assert code == 0
    assert "W not resolved: 1 / W is at its bound 0" in out
    assert "rolling hold-out of time: " in out
    answer = json.loads(command("predict", "f.json", *at, "--json")[1])["answers"]["time"]
    F, t0 = (found["parameters"][name] for name in ("F", "t0"))
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
