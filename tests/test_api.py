"""The Python API: its names, what its objects print, and that it takes what people pass."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from command_support import ALPHA, PLANTED, A, E, planted, surface, write_study
from matplotlib.axes import Axes

import scalebench
from scalebench.analysis.predictions import predict_fit
from scalebench.api import Results, _compute_fit
from scalebench.comparison import Comparison
from scalebench.errors import InputError
from scalebench.laws import FitRefused
from scalebench.running.sweep import Sweep

mpl.use("Agg")


POWER = {"params": [1e6, 1e7, 1e8, 1e9], "loss": [4.0, 3.4, 3.0, 2.8]}
SWEEP = pd.DataFrame(
    {"params": n, "lr": lr, "loss": 2 + (np.log(lr) - np.log(0.3 * n**-0.25)) ** 2}
    for n in (1e5, 1e6, 1e7, 1e8) for lr in np.geomspace(1e-3, 3e-2, 9)
)  # fmt: skip

NAMES = {"N": "params", "D": "tokens", "L": "loss"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("api") / "planted", planted()).parent


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return scalebench.load_results(folder)


def test_dir_shows_the_api_and_every_name_is_there() -> None:
    names = {"run", "plan", "fit", "report", "compare", "predict", "optimal", "next_trial", "worth", "tune"}
    names |= {"load_study", "load_results", "load_fit", "plot"}
    assert names == set(dir(scalebench)) - {"__version__"}
    assert all(callable(getattr(scalebench, name)) and getattr(scalebench, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="known: "):
        scalebench.nothing  # noqa: B018


def test_results_are_a_frame_with_a_short_repr(results: Results) -> None:
    assert repr(results) == "Results: 14 trials of planted (14 ok); .table, .fit(), .plot.loss()"
    assert "<table" in results._repr_html_()
    assert type(results[["study"]]) is pd.DataFrame
    assert list(results.table) == [
        "study", "status", "family", "params_non_embedding", "seed", "validation_loss_nats", "step_time_median_s",
    ]  # fmt: skip
    assert results["validation_loss_nats"].gt(E).all()


def test_results_are_fitted_without_renaming_columns(results: Results, folder: Path) -> None:
    fitted = results.fit("power")
    assert fitted.parameters["alpha"] == pytest.approx(ALPHA, rel=0.05)
    for points in (results, results[["params_non_embedding", "validation_loss_nats"]], folder / "planted"):
        assert scalebench.fit(points).parameters == pytest.approx(fitted.parameters)
    assert results.fit(where="params_non_embedding < 5e5").n_points == 12


def test_trials_that_failed_are_not_fitted(tmp_path: Path) -> None:
    rows = planted()
    rows[0] |= {"status": "failed", "validation_loss_nats": 99.0}
    rows[1] |= {"invalid_reason": "a reason", "validation_loss_nats": 99.0}
    assert scalebench.load_results(write_study(tmp_path / "s", rows)).fit().n_points == 12


def test_a_fit_predicts_from_a_number_and_prints_one_line(results: Results) -> None:
    fitted = results.fit("power")
    expected = fitted.predict(x=1e6)
    assert fitted.predict(1e6) == pytest.approx(expected)
    assert fitted.predict([1e6, 1e7])[0] == pytest.approx(expected[0])
    assert len(repr(fitted)) < 120
    assert repr(fitted).startswith("Fit of power to 14 points: E = ")
    assert "<td>alpha</td>" in fitted._repr_html_()
    two = scalebench.fit(surface().rename(columns={"N": "params", "D": "tokens", "L": "loss"}), "chinchilla")
    with pytest.raises(FitRefused, match="params and tokens"):
        two.predict(1e6)


@pytest.mark.parametrize("name", ["loss", "time", "memory", "residuals"])
@pytest.mark.usefixtures("few_refits")
def test_plots_return_axes(results: Results, name: str) -> None:
    axes = getattr(results.plot, name)()
    assert isinstance(axes, Axes)
    assert axes.get_xlabel() or axes.get_ylabel()
    assert getattr(results.plot, name)(ax=axes) is axes
    mpl.pyplot.close(axes.figure)


@pytest.mark.parametrize("own", [False, True])
def test_many_series_are_named_at_their_ends_on_plain_axes_too(tmp_path: Path, own: bool) -> None:
    names = [f"kind {letter}" for letter in "abcdefgh"]
    rows = [
        row | {"implementation": name, "trial_id": name[-1] + row["trial_id"]} for name in names for row in planted()
    ]
    folder = write_study(tmp_path / "planted", rows).parent
    axes = scalebench.load_results(folder).plot.time(ax=mpl.pyplot.subplots()[1] if own else None)
    axes.figure.draw_without_rendering()
    assert {text.get_text() for text in axes.texts} >= set(names)
    mpl.pyplot.close(axes.figure)


def test_pandas_own_plots_remain(results: Results) -> None:
    axes = results.plot(x="params_non_embedding", y="validation_loss_nats")
    assert len(axes.lines) == 1
    mpl.pyplot.close(axes.figure)


def test_a_study_and_a_comparison_print_one_line(tmp_path: Path) -> None:
    study = scalebench.load_study("demo")
    assert repr(study) == str(study) == "Study 'demo': training; axes: model.params (7), train.seed (2)"
    assert "<td>train.seed</td><td>0, 1</td>" in study._repr_html_()
    row = {"case": "c", "provider": "eager", "status": "ok", "time_median_s": 1.0, "verdict": None}
    compared = Comparison(tmp_path, [row])
    assert repr(compared).startswith("Comparison: 1 row of 1 case in ")
    assert "eager" in compared._repr_html_()


@pytest.mark.slow
def test_predictions_and_advice_agree_with_the_planted_laws(folder: Path, tmp_path: Path) -> None:
    predicted = {each.quantity: each.value for each in scalebench.predict(folder / "planted", params=3e6).quantities}
    assert predicted["validation loss"] == pytest.approx(E + A * 3e6**-ALPHA, rel=0.01)
    frame = surface(0.003).rename(columns={"N": "params", "D": "tokens", "L": "loss"}).drop(columns="C")
    frame.to_csv(tmp_path / "p.csv", index=False)
    by_path, by_frame = scalebench.optimal(tmp_path / "p.csv"), scalebench.optimal(frame)
    assert by_frame.a == pytest.approx(PLANTED["beta"] / (PLANTED["alpha"] + PLANTED["beta"]), abs=0.03)
    assert by_path.a == pytest.approx(by_frame.a)
    design = scalebench.next_trial(frame, {"params": 7e10, "tokens": 1e13})
    assert len(design.chosen) == 1
    assert design.chosen[0].narrowing < 1


@pytest.mark.slow
def test_half_the_compute_is_worth_two() -> None:
    flops = np.geomspace(1e18, 1e22, 9)
    loss = 1.7 + 400 * flops**-0.15
    before, after = (scalebench.fit({"x": flops / factor, "y": loss}) for factor in (1, 2))
    assert scalebench.worth(before, after).multiplier == pytest.approx(2, rel=0.02)
    tables = {"flops": flops, "loss": loss}, pd.DataFrame({"flops": flops / 2, "loss": loss})
    assert scalebench.worth(*tables).multiplier == pytest.approx(2, rel=0.02)


def test_results_are_worth_what_their_folder_is(results: Results, folder: Path) -> None:
    by_results = _compute_fit(results, "power")
    assert by_results.parameters == pytest.approx(_compute_fit(folder / "planted", "power").parameters)


def test_where_selects_rows_of_a_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalebench.advice.closed_form.parametric", lambda fitted, *_, **__: fitted.n_points)
    frame = surface().rename(columns={"N": "params", "D": "tokens", "L": "loss"}).drop(columns="C")
    small = int((frame["params"] < 1e9).sum())
    assert small < len(frame)
    assert scalebench.optimal(frame, where="params < 1e9") == small
    assert scalebench.optimal(frame.to_dict("list"), where="params < 1e9") == small


@pytest.mark.usefixtures("few_refits")
def test_exact_flops_are_those_of_the_column() -> None:
    frame = surface().rename(columns=NAMES).drop(columns="C")
    plain = scalebench.optimal(frame)
    twice = scalebench.optimal(frame.assign(flops=12 * frame["params"] * frame["tokens"]), flops="exact")
    assert twice.params(2e21) == pytest.approx(plain.params(1e21))
    assert twice.tokens(2e21) == pytest.approx(plain.tokens(1e21))


def test_tables_of_other_libraries_are_read() -> None:
    frame = pd.DataFrame(POWER)
    assert scalebench.fit(pa.Table.from_pandas(frame)).parameters == pytest.approx(scalebench.fit(frame).parameters)
    assert scalebench.tune(pa.Table.from_pandas(SWEEP), "lr", "params").exponents.keys() == {"params"}


def test_tokens_that_a_law_does_not_use_are_a_warning() -> None:
    with pytest.warns(UserWarning, match="tokens is not used: power predicts from params"):
        scalebench.predict(POWER, 1e9, 1e12)


def test_what_a_prompt_shows_is_short(folder: Path, results: Results) -> None:
    sweep = Sweep(folder / "planted", [], {"a": {"status": "ok"}, "b": {"status": "oom"}}, executed=1)
    assert repr(sweep) == f"Sweep in {folder / 'planted'}: 0 trials (1 ok, 1 oom), 1 executed"
    prediction = predict_fit(results.fit("power"), {"x": 1e6}, "loss")
    assert repr(prediction).startswith("SizePrediction at 1e+06 parameters: loss 1.")
    assert len(repr(prediction)) < 120


def test_tuning_finds_a_planted_rate() -> None:
    law = scalebench.tune(SWEEP, "lr", ["params"])
    assert law.exponents["params"] == pytest.approx(-0.25, abs=0.01)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: scalebench.fit(3), "not int (3)"),
        (lambda: scalebench.fit({"a": [1.0]}), "needs a column params or x"),
        (lambda: scalebench.load_results(3), "expected a path, not int (3)"),
        (scalebench.load_results, "give the path of a results folder"),
        (lambda: scalebench.load_fit(None), "expected a path, not NoneType"),
        (lambda: scalebench.load_study({"name": "x"}), "expected the path of a study file, or the name of a study"),
        (lambda: scalebench.optimal({"loss": [1.0]}, where="size > 1"), "unknown 'size'"),
        (lambda: scalebench.predict(POWER, 1e6, sequence=5), "power predicts from params, not sequence"),
        (lambda: scalebench.predict(3, 1e6), "expected a path or a fit, not int (3)"),
        (lambda: scalebench.optimal(3), "not int (3)"),
        (lambda: scalebench.optimal({}, approach=4), "approach 4"),
        (lambda: scalebench.worth(3, 4), "not int (3)"),
        (lambda: scalebench.tune(3), "not int (3)"),
        (lambda: scalebench.fit({"x": [1.0, 2.0], "y": [2.0, 1.0]}, "pover"), "did you mean 'power'"),
        (lambda: scalebench.fit({"x": [1.0, 2.0], "y": [2.0]}), "must be of the same length"),
        (lambda: scalebench.fit({"x": [1.0], "y": [2.0]}, 5), "a name or a Law, not int (5)"),
        (lambda: scalebench.fit({"x": [1.0], "y": [2.0]}, where=5), "an expression in a text, not int (5)"),
        (lambda: scalebench.predict("fit.json", "7B"), "params is a number, not str ('7B')"),
        (lambda: scalebench.optimal({}, parameters="total"), "unknown 'parameters'; did you mean 'params'"),
        (lambda: scalebench.next_trial("fit.json", [1e9]), "a mapping of the law's inputs, not list"),
        (lambda: scalebench.tune("sweep.csv", 5), "the name of a column, or several, not int (5)"),
        (lambda: scalebench.plan("mlp"), "as load_study(...) returns it, not str ('mlp')"),
        (lambda: scalebench.run("mlp"), "as load_study(...) returns it, not str ('mlp')"),
        (lambda: scalebench.report(5, "x.html"), "not int (5)"),
        (lambda: scalebench.report(["results"], None), "expected a path, not NoneType"),
        (lambda: scalebench.compare(3), "not int (3)"),
        (lambda: scalebench.compare("norm", dtype=5), "dtype: expected a text, or several, not int (5)"),
        (lambda: scalebench.compare("norm", processes=2.0), "processes: expected a whole number, not float (2.0)"),
        (lambda: scalebench.compare("norm", seconds="1"), "seconds: expected a number, not str ('1')"),
        (lambda: scalebench.compare("norm", graphs="no"), "graphs: expected True or False, not str ('no')"),
    ],
)
def test_wrong_types_get_a_sentence(call, part: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.usefixtures("few_refits")
def test_what_the_api_returns_prints_one_line() -> None:
    points = surface(0.0).rename(columns=NAMES)
    flops = {"flops": [1e17, 1e18, 1e19, 1e20, 1e21], "loss": [3.6, 3.1, 2.75, 2.51, 2.34]}
    target = {"params": 7e9, "tokens": 1e12}
    fitted = scalebench.fit(points, "chinchilla")
    printed = {
        "Allocation of approach 3 (N total, C 6ND): N* = ": scalebench.optimal(points),
        "OptimumLaw: lr* = 0.3 params^-0.25, from 4 sweeps": scalebench.tune(SWEEP, "lr", "params"),
        "ComputeMultiplier: 1 (95 %: ": scalebench.worth(flops, flops),
        "Design for params 7e+09, tokens 1e+12: 1 trial, interval width ×": scalebench.next_trial(fitted, target),
        "PlannedTrial ": scalebench.plan(scalebench.load_study("mlp"))[0],
    }
    for begin, value in printed.items():
        assert repr(value).startswith(begin)
        assert len(repr(value)) < 120


@pytest.mark.usefixtures("few_refits")
def test_sizes_in_a_table_may_be_texts_as_in_a_file() -> None:
    texts = pd.DataFrame({"params": ["1M", "10M", "0.1B", "1e9"], "loss": ["4,0", "3,4", "3,0", 2.8]})
    expected = scalebench.fit(POWER).parameters
    for table in (texts, texts.to_dict("list"), texts.astype("string"), pa.table(texts.astype(str)), texts[::-1]):
        assert scalebench.fit(table).parameters == pytest.approx(expected)
    sweep = SWEEP.assign(params=[f"{n / 1e6:g}M" for n in SWEEP["params"]])
    assert scalebench.tune(sweep, "lr", "params").exponents == scalebench.tune(SWEEP, "lr", "params").exponents
    flops = {"flops": [1e17, 1e18, 1e19, 1e20, 1e21], "loss": [3.6, 3.1, 2.75, 2.51, 2.34]}
    as_texts = flops | {"flops": ["100P", "1000P", "1e19", "1e20", "1e21"]}
    assert scalebench.worth(as_texts, flops).multiplier == pytest.approx(1)
    grid = {name: values.tolist() for name, values in surface(0.0).rename(columns=NAMES).items()}
    as_texts = grid | {"tokens": [f"{tokens / 1e9!r}B" for tokens in grid["tokens"]]}
    assert scalebench.optimal(as_texts).a == pytest.approx(scalebench.optimal(grid).a)
    with pytest.raises(FitRefused, match="two columns of that name"):
        scalebench.fit(pd.concat([texts, texts["loss"]], axis=1))
    upper = texts.rename(columns={"params": "Params", "loss": "LOSS"})
    assert scalebench.fit(upper).parameters == pytest.approx(expected)
    with pytest.raises(FitRefused, match=r"'params', row 1 .* is 10X; it needs"):
        scalebench.fit(texts.assign(params=["1M", "10X", "100M", "1B"]))


def test_a_number_beside_arrays_counts_for_every_row() -> None:
    fitted = scalebench.fit(surface(0.0).rename(columns=NAMES), "chinchilla")
    expected = fitted.predict(params=[1e8, 1e9], tokens=[1e11, 1e11])
    assert fitted.predict(params=np.array([1e8, 1e9]), tokens=1e11) == pytest.approx(expected)
    assert fitted.predict({"params": 1e8, "tokens": np.float64(1e11)}) == pytest.approx(expected[:1])
    low, high = fitted.prediction_interval({"params": [1e8, 1e9], "tokens": 1e11})
    assert len(low) == len(high) == 2
    with pytest.raises(FitRefused, match="differ in length: params 2, tokens 3"):
        fitted.predict(params=[1e8, 1e9], tokens=[1e11] * 3)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: scalebench.tune(SWEEP.assign(lr="1 %"), "lr", "params"), "column 'lr', row 0 (counted from 0) is 1 %"),
        (lambda: scalebench.worth({"flops": [1e18], "cost": [3.0]}, {}), "column 'loss' is missing"),
    ],
)
def test_wrong_columns_get_a_sentence(call, part: str) -> None:
    with pytest.raises(FitRefused) as error:
        call()
    assert part in str(error.value)


def test_fits_warn_as_the_command_does(command, tmp_path: Path) -> None:
    """Trials that differ in more than size, and units that look slipped, in Python and on the command line."""
    rows = planted()
    for row in rows[::2]:
        row["implementation"] = "sdpa"
    write_study(tmp_path / "r" / "planted", rows)
    _, _, err = command("fit", "r/planted", "--bootstrap", "9")
    (line,) = err.splitlines()
    assert "these trials differ in implementation" in line
    for points in (tmp_path / "r" / "planted", scalebench.load_results(tmp_path / "r" / "planted")):
        with pytest.warns(UserWarning, match="these trials differ in implementation"):
            scalebench.fit(points)
        scalebench.fit(points, where="implementation == 'sdpa'")
    millions = {"params": [10.0, 20.0, 40.0, 80.0], "loss": [4.0, 3.5, 3.2, 3.0]}
    with pytest.warns(UserWarning, match="not millions or billions of them"):
        scalebench.fit(millions)
