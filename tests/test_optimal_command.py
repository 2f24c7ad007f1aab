"""`optimal`: each approach that the points carry, with planted optima."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from advice_support import ladder
from command_support import COLUMNS, PLANTED, named, surface

from scalebench.advice import isoflop, parametric
from scalebench.laws import LAWS, fit


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
    output = json.loads(out)
    second, third = output["allocations"]
    assert (second["approach"], third["approach"]) == (2, 3)
    assert second["a"] == isoflop(named(table)).a
    assert third["a"] == parametric(fit(named(table), "chinchilla")).a
    a = PLANTED["beta"] / (PLANTED["alpha"] + PLANTED["beta"])
    assert third["intervals"]["a"][0] < a < third["intervals"]["a"][1]
    (at,) = third["at"]
    assert at["params_interval"][0] < at["params"] < at["params_interval"][1]
    assert 6 * at["params"] * at["tokens"] == pytest.approx(1e22, rel=1e-6)
    assert output["refused"] == [{"approach": 1, "reason": output["refused"][0]["reason"]}]
    assert "column 'run' is missing" in output["refused"][0]["reason"]
    counted = output["conventions"]["rows"]
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
    assert err.endswith("name it with --unique-tokens-column\n")  # `optimal` has no --column
    named = (*COLUMNS, "--unique-tokens-column", "U", "--unique-tokens", "-1", "--budget", "1e21")
    code, _, err = command("optimal", "p.csv", *named)
    assert (code, err) == (2, "p.csv: flops is 1e+21, unique_tokens is -1.0; both need a positive number\n")


@pytest.mark.usefixtures("few_refits")
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


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
def test_budgets_left_out_are_told_by_kind(command) -> None:
    edge = budgets()[:9].assign(D=lambda t: 0.01 * t["D"], L=lambda t: 3 + 0.1 * np.log(t["N"] / 1e6))
    table = pd.concat([budgets(), surface(0.001)[["N", "D", "L"]], edge])  # the grid has budgets of one to five sizes
    table.to_csv("p.csv", index=False)
    request = ("optimal", "p.csv", *COLUMNS, "--approach", "2")
    refused = json.loads(command(*request, "--json")[1])["allocations"][0]["refused"]
    few = [entry for entry in refused if "for a parabola" in entry["reason"]]
    assert all("of params for a parabola" in entry["reason"] for entry in few)
    assert len(refused) > len(few) > 2
    lines = [line for line in command(*request)[1].splitlines() if "left out" in line]
    assert len(lines) < len(refused)
    (line,) = (line for line in lines if "for a parabola" in line)
    assert f" and {len(few) - 1} more: left out: " in line


def test_a_budget_counted_as_beyond_an_edge_is_not_called_left_out(command) -> None:
    pd.DataFrame(ladder(0.003, 2)).to_csv("p.csv", index=False)
    _, out, _ = command("optimal", "p.csv", "--approach", "2", "--loss-column", "loss")
    lines = " ".join(out.split()).split("approach 2, flops ")[1:]
    counted = ["The line counts the best params as" in line for line in lines]
    assert sorted(counted) == [False, True, True]
    assert [": counted as beyond its edge: the lowest loss" in line for line in lines] == counted
    assert [": left out: the lowest loss" in line for line in lines] == [not used for used in counted]


def test_parameters_of_one_count_are_not_passed_off_as_the_other(command) -> None:
    table = budgets()
    table.assign(C=6 * table["N"] * table["D"]).to_csv("p.csv", index=False)
    out = command("optimal", "p.csv", *COLUMNS, "--flops-column", "C", "--approach", "3", "--json")[1]
    rows = {(row["counting_params"], row["counting_flops"]): row for row in json.loads(out)["conventions"]["rows"]}
    assert rows["total", "6ND"]["N"] == pytest.approx(rows["total", "exact"]["N"], rel=1e-3)
    for flops in ("6ND", "exact"):
        assert rows["non_embedding", flops]["N"] is None
        assert "column 'params_non_embedding' is missing" in rows["non_embedding", flops]["refused"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_refits")
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
