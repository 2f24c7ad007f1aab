"""`scalebench fit`: planted laws come back, the JSON is the fit's, and wrong input is one line and exit code 2."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import CHINCHILLA, PLANTED, surface
from support import REPOSITORY, reference_data

from scalebench.laws import LAWS, Refits, fit
from scalebench.points.fit_file import from_document
from scalebench.points.roles import law_columns


@pytest.mark.parametrize("data", [("--tokens-column", "D"), ("--flops-column", "C")], ids=["tokens", "flops"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_planted_surface_comes_back(command, tmp_path: Path, data, suffix: str) -> None:
    table = surface()
    table.to_csv("p.csv", index=False) if suffix == "csv" else table.to_parquet("p.parquet")
    code, out, _ = command("fit", f"p.{suffix}", *CHINCHILLA, *data, "--output", "f.json")
    assert code == 0
    assert "converged" in out
    parameters = json.loads((tmp_path / "f.json").read_text())["parameters"]
    assert parameters == pytest.approx(PLANTED, rel=1e-5)


@pytest.mark.slow
def test_json_is_to_dict_and_the_points(command, tmp_path: Path) -> None:
    table = surface(0.01)
    table.to_csv("p.csv", index=False)
    assert command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--output", "f.json")[0] == 0
    document = json.loads((tmp_path / "f.json").read_text())
    points = table.set_axis(["params", "tokens", "flops", "loss", "kind"], axis=1)[["params", "tokens", "loss"]]
    expected = fit(points, "chinchilla").to_dict()
    assert {key: document[key] for key in expected} == json.loads(json.dumps(expected))
    assert set(document) == set(expected) | {"backtest", "points", "source"}
    _, out, _ = command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--json")
    assert json.loads(out) == {"command": "fit"} | document


@pytest.mark.usefixtures("few_refits")
def test_a_fit_made_again_from_its_json_predicts_the_same(command, tmp_path: Path) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    options = ("--loss", "squares", "--space", "raw", "--fix", "alpha=0.34", "--where", "kind == 'big'")
    assert command("fit", "p.csv", *CHINCHILLA, "--flops-column", "C", *options, "--output", "f.json")[0] == 0
    again, document = from_document(tmp_path / "f.json")
    table = surface(0.01)[lambda frame: frame["kind"] == "big"]
    points = {"params": table["N"], "tokens": table["C"] / 6 / table["N"], "loss": table["L"]}
    once = fit(points, "chinchilla", loss="squares", space="raw", fixed={"alpha": 0.34})
    at = {"params": [7e9, 1e12], "tokens": [1.4e12, 1e14]}
    assert np.array_equal(again.predict(at), once.predict(at))
    assert np.array_equal(again.prediction_interval(at), once.prediction_interval(at))
    assert again.parameters == document["parameters"]


@pytest.mark.slow
def test_more_refits_and_a_backtest_are_in_both_outputs(command, tmp_path: Path) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    arguments = (
        "fit",
        "p.csv",
        *CHINCHILLA,
        "--tokens-column",
        "D",
        "--bootstrap",
        300,
        "--backtest",
        "--output",
        "f.json",
    )
    code, out, _ = command(*arguments)
    assert code == 0
    document = json.loads((tmp_path / "f.json").read_text())
    columns = {"params": "N", "tokens": "D", "loss": "L"}
    fitted = fit({role: surface(0.01)[name] for role, name in columns.items()}, "chinchilla")
    boot = fitted.bootstrap(300, 0)
    assert document["intervals"]["alpha"] == list(boot.interval("alpha"))
    assert [row["size"] for row in document["backtest"]] == [row.size for row in fitted.backtest("rolling").forecasts]
    assert document["backtest_by_distance"] == fitted.backtest("beyond").by_distance()
    assert "rolling backtest" in out
    assert all(f"\n×{row['distance_above']:g} to " in out for row in document["backtest_by_distance"][:2])
    assert boot.method in out


def test_laws_of_one_input_take_x_and_y_or_params_and_loss(command, tmp_path: Path) -> None:
    x = np.geomspace(1e3, 1e6, 6)
    pd.DataFrame({"x": x, "y": 2 + 3e-6 * x, "N": x, "L": 1.5 + 20 * x**-0.4}).to_csv("p.csv", index=False)
    command("fit", "p.csv", "--law", "offset_linear", "--output", "a.json")
    command("fit", "p.csv", "--params-column", "N", "--loss-column", "L", "--output", "b.json")
    command("fit", "p.csv", "--x-column", "N", "--y-column", "L", "--output", "c.json")
    a, b, c = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "abc")
    assert a["parameters"] == pytest.approx({"c0": 2, "c1": 3e-6}, rel=1e-6)
    assert b["parameters"] == c["parameters"] == pytest.approx({"E": 1.5, "A": 20, "alpha": 0.4}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "word"), [("parametric", "parametric bootstrap"), ("wild", "wild bootstrap")])
def test_predict_draws_the_intervals_of_a_fit_as_they_were_asked(command, method: str, word: str) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    request = ("--method", method, "--bootstrap", "300")
    assert command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", *request, "--output", "f.json")[0] == 0
    again, document = from_document(Path("f.json"))
    assert document["refits"] == {"method": method, "n": 300, "seed": 0}
    assert word in document["interval_method"]
    points = surface(0.01).set_axis(["params", "tokens", "flops", "loss", "kind"], axis=1)
    once, at = fit(points, "chinchilla"), {"params": [7e9], "tokens": [1.4e12]}
    (low,), (high,) = once.bootstrap(300, 0, method).prediction_interval(at, kind="new")
    code, out, _ = command("predict", "f.json", "--params", "7e9", "--tokens", "1.4e12", "--json")
    assert code == 0
    answer = json.loads(out)["answers"]["L"]
    assert (answer["low"], answer["high"]) == pytest.approx((low, high), rel=1e-9)
    assert [answer["low"], answer["high"]] != pytest.approx(
        [end[0] for end in once.prediction_interval(at, kind="new")]
    )
    assert again.interval("alpha") == tuple(document["intervals"]["alpha"])


def test_a_fit_from_before_its_refits_were_kept_loads_as_auto(command) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    request = ("--method", "wild", "--bootstrap", "300")
    assert command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", *request, "--output", "f.json")[0] == 0
    document = json.loads(Path("f.json").read_text())
    old = {name: value for name, value in document.items() if name != "refits"}
    Path("old.json").write_text(json.dumps(old))
    assert from_document(Path("old.json"))[0].refits == Refits("auto", 1000, 0)
    for wrong in ({"method": "tame"}, {"n": 1}, {"n": "many"}, {"draws": 3}, 5):
        Path("bad.json").write_text(json.dumps({**document, "refits": wrong}))
        code, _, err = command("predict", "bad.json", "--params", "7e9", "--tokens", "1.4e12")
        assert (code, err.count("\n")) == (2, 1)
        assert "bad.json: the fit in it cannot be made again" in err


@pytest.mark.usefixtures("few_refits")
def test_columns_that_a_law_does_not_use_are_said(command) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    code, _, err = command("fit", "p.csv", "--params-column", "N", "--tokens-column", "D", "--loss-column", "L")
    assert (code, err) == (0, "not used by power: column 'D' for tokens\n")


def test_rows_of_one_run_are_one_configuration(command, tmp_path: Path) -> None:
    table = surface(0.01).assign(run=lambda frame: "run " + frame["N"].round().astype(str))
    table.to_csv("p.csv", index=False)
    columns = ("--tokens-column", "D", "--config-column", "run", "--output", "f.json")
    assert command("fit", "p.csv", *CHINCHILLA, *columns)[0] == 0
    document = json.loads((tmp_path / "f.json").read_text())
    assert document["n_configurations"] == 5
    again, _ = from_document(tmp_path / "f.json")
    assert again.n_configurations == 5


@pytest.mark.slow
def test_the_commands_of_the_readme_run(command, tmp_path: Path) -> None:
    section = (REPOSITORY / "README.md").read_text().split("## Bring your own points")[1].split("\n## ")[0]
    blocks = [part.partition("\n") for part in section.split("```")[1::2]]
    (tmp_path / "points.csv").write_text(next(text for kind, _, text in blocks if kind == "csv"))
    commands = next(text for kind, _, text in blocks if kind == "sh")
    lines = [line for line in commands.replace("\\\n", " ").splitlines() if line.startswith("scalebench ")]
    assert len(lines) == 3
    for line in lines:
        code, _, err = command(*shlex.split(line, comments=True)[1:])
        assert (code, err) == (0, ""), line


def test_tokens_and_flops_give_the_parameters(command, tmp_path: Path) -> None:
    surface().to_csv("p.csv", index=False)
    named = ("--law", "chinchilla", "--tokens-column", "D", "--flops-column", "C", "--loss-column", "L")
    assert command("fit", "p.csv", *named, "--output", "f.json")[::2] == (0, "")
    document = json.loads((tmp_path / "f.json").read_text())
    assert document["parameters"] == pytest.approx(PLANTED, rel=1e-5)
    assert document["points"]["params"] == pytest.approx(surface()["N"].tolist())
    surface().rename(columns={"N": "params"}).to_csv("q.csv", index=False)  # a column of parameters comes first
    assert "not used by chinchilla: column 'C' for flops" in command("fit", "q.csv", *named)[2]


@pytest.mark.usefixtures("few_refits")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t[:3]]), "3 of 28 rows repeat an earlier one exactly and count as separate runs"),
        (
            lambda t: t.rename(columns={"N": "D", "D": "N"}),
            "22 of 25 rows have fewer tokens than parameters: are these",
        ),
        (lambda t: t.assign(N=t["N"] / 1e6), "parameters are at most 10000: is that a count, not millions"),
        (lambda t: t.assign(D=t["D"] / 1e9), "tokens are at most 1000: is that a count, not millions"),
        (lambda t: t, None),
    ],
    ids=["copies", "swapped", "millions", "billions", "none"],
)
def test_what_looks_like_a_slip_is_asked_about(command, change, message: str | None) -> None:
    change(surface(0.01)).to_csv("p.csv", index=False)
    for request in (("fit", "p.csv", *CHINCHILLA), ("optimal", "p.csv", *CHINCHILLA[2:], "--approach", "3")):
        code, _, err = command(*request, "--tokens-column", "D")
        assert code == 0
        assert [line[: len(message or "")] for line in err.splitlines()] == (
            [] if message is None else [f"p.csv: {message}"[: len(message)]]
        )
        assert message is None or message in err


def test_a_column_of_tokens_that_the_law_does_not_take_is_said(command) -> None:
    surface(0.01).set_axis(["params", "tokens", "flops", "loss", "kind"], axis=1).to_csv("p.csv", index=False)
    code, _, err = command("fit", "p.csv", "--bootstrap", "50")
    assert code == 0
    assert err == (
        "p.csv: column 'tokens' is not used by a law of params alone; --law chinchilla uses it, --law auto chooses\n"
    )


def test_a_bootstrap_of_minutes_says_so_beforehand(command, monkeypatch) -> None:
    surface(0.01).to_csv("p.csv", index=False)
    request = ("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "--bootstrap", "60")
    assert command(*request)[2] == ""
    monkeypatch.setattr("scalebench.cli.commands.fit.SLOW", 25 * 60 - 1)
    assert command(*request)[2] == "p.csv: 60 refits of 25 points take minutes; --bootstrap 100 is faster\n"


def test_an_output_that_cannot_be_written_is_reported_before_the_fit(command, tmp_path: Path, monkeypatch) -> None:
    surface().to_csv("p.csv", index=False)
    (tmp_path / "folder").mkdir()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name, before in (("folder", {}), ("p.csv/f.json", {}), ("f.json", {"touch": refuse})):
        with monkeypatch.context() as patch:
            patch.setattr("scalebench.cli.commands.fit.fit_points", lambda *_: pytest.fail("fitted"))
            for method, replacement in before.items():
                patch.setattr(Path, method, replacement)
            code, out, err = command("fit", "p.csv", *CHINCHILLA, "--tokens-column", "D", "-o", name)
        assert (code, out) == (2, "")
        assert err.startswith(f"{name}: cannot be written (")
    assert {path.name for path in tmp_path.iterdir()} == {"p.csv", "folder"}


def test_points_that_do_not_fall_are_said_to_mean_nothing(command) -> None:
    n = np.geomspace(1e6, 1e9, 8)
    rising = (1.7 + 40 * n**-0.3)[::-1]
    pd.DataFrame({"params": n, "loss": rising}).to_csv("p.csv", index=False)
    code, out, _ = command("fit", "p.csv", "--bootstrap", "50")
    assert code == 0
    assert "status      degenerate" in out
    assert ": A = 0, the points do not fall as the law does" in out


def test_three_sizes_have_parameters_and_the_reason_for_no_interval(command) -> None:
    n = np.geomspace(1e6, 1e9, 3)
    pd.DataFrame({"params": n, "loss": 1.7 + 40 * n**-0.3}).to_csv("p.csv", index=False)
    code, out, err = command("fit", "p.csv", "--output", "f.json")
    assert (code, err) == (0, "")
    assert out.count("no interval") == 3
    assert "refused: 3 configurations leave zero degrees of freedom for power" in out
    code, out, _ = command("predict", "f.json", "--params", "1e10")
    assert code == 0
    assert "no interval: 3 configurations leave zero degrees of freedom" in out
    code, _, err = command("fit", "p.csv", "--law", "auto")
    assert code == 2
    assert err.startswith("p.csv: --law auto: none of 2 laws can be fitted; power: ")
    assert err.endswith("a single named law needs no hold-out\n")


def test_default_columns() -> None:
    assert law_columns(LAWS["power"], {}, of_results=False) == {"params": "params", "loss": "loss"}
    ours = {"params": "params_non_embedding", "tokens": "tokens_seen", "loss": "validation_loss_nats"}
    assert law_columns(LAWS["chinchilla"], {}, of_results=True) == ours
    flops = {"params": "params", "flops": "C", "loss": "loss"}
    assert law_columns(LAWS["chinchilla"], {"flops": "C"}, of_results=False) == flops
    both = {"params": "params", "tokens": "D", "loss": "loss"}
    assert law_columns(LAWS["chinchilla"], {"flops": "C", "tokens": "D"}, of_results=False) == both


@pytest.mark.usefixtures("few_refits")
def test_the_published_optimum_on_public_data(command, tmp_path: Path) -> None:
    path = reference_data("epoch_chinchilla/svg_extracted_data.csv")
    columns = ("--params-column", "Model Size", "--flops-column", "Training FLOP", "--where", "loss < 3.4451")
    assert command("fit", path, "--law", "chinchilla", *columns, "--output", "f.json")[0] == 0
    document = json.loads((tmp_path / "f.json").read_text())
    assert document["n_points"] == 240
    assert document["objective"] <= 1.01827403e-3
    a = document["parameters"]["beta"] / (document["parameters"]["alpha"] + document["parameters"]["beta"])
    assert a == pytest.approx(0.5139, abs=1e-4)
