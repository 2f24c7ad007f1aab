"""`--plot`: what `fit`, `optimal`, `worth` and `tune` draw of points from any trainer, and into which files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

import scalebench
from scalebench.advice import compute_multiplier, isoflop
from scalebench.advice.allocation import Allocation, Counting
from scalebench.advice.optima import optimum_laws
from scalebench.errors import InputError
from scalebench.laws import fit
from scalebench.laws.fit import Fit
from scalebench.reporting.figures.points import allocation_figure, fit_figure, optima_figure, worth_figure
from scalebench.reporting.quantities import significant
from scalebench.reporting.svg import Marks, canvas

SIZES = np.geomspace(1e6, 1e9, 6)


def drawn(figure: Callable[[Marks], None]) -> Any:
    """The axes of a figure."""
    with canvas("a figure") as marks:
        figure(marks)
        return marks.axes


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def chinchilla(params: Any, tokens: Any, noise: float = 1e-3) -> Fit:
    random = np.random.default_rng(0).normal(0, noise, len(params))
    loss = (1.7 + 400 * params**-0.34 + 400 * tokens**-0.28) * np.exp(random)
    return fit({"params": params, "tokens": tokens, "loss": loss}, "chinchilla")


def curves(axes: Any) -> list[Any]:
    return [line for line in axes.lines if len(line.get_xdata()) > 2 and line.get_linestyle() != "None"]


# --- fit -------------------------------------------------------------------------------------------------------------


def test_a_law_of_one_input_has_its_points_its_curve_and_a_band() -> None:
    points = {"params": SIZES, "loss": 1.5 + 30 * SIZES**-0.3 * np.array([1.01, 0.99, 1, 1.01, 0.99, 1])}
    fitted = fit(points, "power")
    axes = drawn(lambda marks: fit_figure(marks, fitted))
    (curve,) = curves(axes)
    assert curve.get_ydata() == pytest.approx(fitted.predict(curve.get_xdata()))
    assert labels(axes) == ["fitted law", "points"]
    assert len(axes.collections) == 1  # the band
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "params", "loss")
    assert f"E = {fitted.parameters['E']:.2f}" in axes.get_legend().get_title().get_text()


def test_a_law_without_freedom_has_no_band() -> None:
    fitted = fit({"params": SIZES[:3], "loss": 1.5 + 30 * SIZES[:3] ** -0.3}, "power")
    assert not drawn(lambda marks: fit_figure(marks, fitted)).collections


def test_a_grid_has_a_curve_for_each_amount_of_data() -> None:
    params, tokens = map(np.ravel, np.meshgrid(SIZES, [1e9, 1e10, 1e11]))
    fitted = chinchilla(params, tokens)
    axes = drawn(lambda marks: fit_figure(marks, fitted))
    assert [text.replace("\u00a0", " ") for text in labels(axes)] == [
        "tokens 1.00 G", "tokens 10.0 G", "tokens 100 G",
    ]  # fmt: skip
    for curve, amount in zip(curves(axes), (1e9, 1e10, 1e11), strict=True):
        x = curve.get_xdata()
        assert curve.get_ydata() == pytest.approx(fitted.predict(params=x, tokens=np.full(len(x), amount)))


def test_budgets_of_compute_have_a_curve_each_over_their_own_sizes() -> None:
    flops = np.repeat([1e19, 1e20, 1e21], 7)
    params = 0.1 * flops**0.49 * np.tile(np.exp(np.linspace(-1.5, 1.5, 7)), 3)
    axes = drawn(lambda marks: fit_figure(marks, chinchilla(params, flops / 6 / params)))
    assert labels(axes) == ["1e19 FLOP", "1e20 FLOP", "1e21 FLOP"]
    for i, curve in enumerate(curves(axes)):
        x, own = curve.get_xdata(), params[7 * i : 7 * i + 7]
        assert (x.min(), x.max()) == pytest.approx((own.min(), own.max()))
        assert 0 < curve.get_ydata().argmin() < len(x) - 1  # a budget has an optimum


def test_points_without_a_grid_are_drawn_as_residuals() -> None:
    random = np.random.default_rng(1)
    fitted = chinchilla(10 ** random.uniform(7, 9, 60), 10 ** random.uniform(9, 11, 60))
    axes = drawn(lambda marks: fit_figure(marks, fitted))
    errors = np.concatenate([line.get_ydata() for line in axes.lines if line.get_linestyle() == "None"])
    assert sorted(errors) == pytest.approx(sorted(100 * np.expm1(fitted.residuals)))
    assert axes.get_ylabel() == "residual (% of fitted loss)"


# --- optimal, tune ---------------------------------------------------------------------------------------------------


def grid() -> dict[str, Any]:
    flops = np.repeat([1e19, 1e20, 1e21, 1e22], 7)
    params = 0.1 * flops**0.49 * np.tile(np.exp(np.linspace(-1.5, 1.5, 7)), 4)
    tokens = flops / 6 / params
    return {"params": params, "tokens": tokens, "loss": 1.7 + 400 * params**-0.34 + 400 * tokens**-0.28}


def test_both_lines_of_an_approach_reach_the_budget_and_have_its_minima() -> None:
    points = grid()
    allocation = isoflop(points)
    spent = 6 * points["params"] * points["tokens"]
    axes = drawn(lambda marks: allocation_figure(marks, [allocation], [1e24], spent))
    assert labels(axes) == ["N*, approach 2", "D*, approach 2"]
    for curve, value in zip(curves(axes), (allocation.params, allocation.tokens), strict=False):
        assert curve.get_xdata()[-1] == pytest.approx(1e24)
        assert curve.get_ydata() == pytest.approx(value(curve.get_xdata()))
    minima = next(line for line in axes.lines if line.get_linestyle() == "None")
    assert minima.get_xdata() == pytest.approx([1e19, 1e20, 1e21, 1e22])


def test_an_optimum_that_is_not_determined_is_not_drawn() -> None:
    draws = np.array([[np.log(1e-3), 0.5, np.log(1e-3), 0.5], [np.log(1e3), 0.5, np.log(1e3), 0.5]] * 20)
    allocation = Allocation(3, Counting(), draws.mean(axis=0), draws, "a bootstrap", ())
    axes = drawn(lambda marks: allocation_figure(marks, [allocation], [], np.array([1e19, 1e21])))
    assert len(axes.lines) == 2  # N* and D*
    assert all(np.isnan(line.get_ydata()).all() for line in axes.lines)


def test_the_best_values_have_their_law_and_what_lies_beyond_an_edge() -> None:
    rows = [
        {"params": size, "lr": lr, "loss": 3 + 0.1 * np.log(lr / (0.02 * (size / 1e6) ** -0.3)) ** 2}
        for i, size in enumerate(SIZES)
        for lr in 1e-3 * 2.0 ** np.arange(-3, 0 if i == 5 else 7)
    ]
    (law,) = optimum_laws(pd.DataFrame(rows), ["lr"], ["params"])
    axes = drawn(lambda marks: optima_figure(marks, [law], 1e10))
    assert labels(axes)[:2] == ["law of lr", "best lr of a sweep"]
    assert "best value above its sweep" in labels(axes)[2]
    (curve,) = curves(axes)[:1]
    assert curve.get_xdata()[-1] == pytest.approx(1e10)
    assert curve.get_ydata()[-1] == pytest.approx(law.predict(params=1e10))
    (refused,) = law.refused
    assert refused.edge is not None
    triangle = axes.lines[-1]
    assert (triangle.get_xdata()[0], triangle.get_ydata()[0]) == (SIZES[5], refused.edge.limit)
    assert law.to_dict()["refused"][0]["edge"] == {"column": "lr", "side": "above", "limit": refused.edge.limit}


def compute_law(saving: float) -> Fit:
    flops = np.geomspace(1e17, 1e20, 6)
    return fit({"x": flops, "y": 2 + 300 * (flops * saving) ** -0.15}, "power")


def test_what_a_change_is_worth_is_the_distance_of_two_curves() -> None:
    fits = compute_law(1), compute_law(2)
    worth = compute_multiplier(*fits, n=20)
    axes = drawn(lambda marks: worth_figure(marks, *fits, worth))
    assert labels(axes) == ["baseline", "changed", f"×2.00 at loss {significant(worth.loss, 4)}"]
    (distance,) = (part.get_segments()[0] for part in axes.collections if isinstance(part, LineCollection))
    assert sorted(distance[:, 0]) == pytest.approx([worth.changed_flops, worth.baseline_flops])


# --- in Python -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plot_draws_each_kind_into_axes_of_ones_own() -> None:
    points = {"params": SIZES, "loss": 1.5 + 30 * SIZES**-0.3}
    axes = mpl.pyplot.subplots()[1]
    assert scalebench.plot(fit(points, "power"), axes) is axes
    assert axes.get_ylabel() == "loss"
    allocations = [isoflop(grid()), scalebench.optimal(grid())]
    both = scalebench.plot(allocations, at=1e24)
    assert len(labels(both)) == 4
    assert max(curves(both)[0].get_xdata()) == pytest.approx(1e24)
    mpl.pyplot.close("all")


@pytest.mark.parametrize("wrong", [[], 3.0, "fit", [1, 2]])
def test_plot_says_what_it_draws(wrong: Any) -> None:
    with pytest.raises(InputError, match="expected one fit, or what optimal or tune return"):
        scalebench.plot(wrong)


def test_plot_asks_for_the_compute_where_an_allocation_has_none() -> None:
    with pytest.raises(InputError, match="no budgets of its own; give the compute in FLOPs"):
        scalebench.plot(scalebench.optimal(grid()))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def power(tmp_path: Path) -> Path:
    pd.DataFrame({"params": SIZES, "loss": 1.5 + 30 * SIZES**-0.3}).to_csv(tmp_path / "p.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "start"),
    [("f.png", b"\x89PNG"), ("f.svg", b"<?xml"), pytest.param("F.PDF", b"%PDF", marks=pytest.mark.slow)],
)
def test_a_file_has_the_format_of_its_suffix_and_the_same_bytes_again(
    command, power: Path, name: str, start: bytes
) -> None:
    contents = []
    for _ in range(2):
        code, out, _ = command("fit", "p.csv", "--bootstrap", 20, "--plot", name)
        assert (code, out.splitlines()[-1]) == (0, f"written: {name}")
        contents.append((power / name).read_bytes())
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]


def test_json_stays_one_object(command, power: Path) -> None:
    out = command("fit", "p.csv", "--bootstrap", 20, "--plot", "f.svg", "--json")[1]
    assert json.loads(out)["law"] == "power"
    assert (power / "f.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("fit", "p.csv", "--plot", "f.jpg"), "suffix '.jpg' is not one of .png, .svg, .pdf"),
        (("fit", "p.csv", "--plot", "p.csv/f.png"), "p.csv/f.png: cannot be written"),
        (("tune", "p.csv", "--against", "params,loss", "--plot", "f.png"), "--against names params and loss"),
        (("optimal", "p.csv", "--unique-tokens", "1G", "--plot", "f.png"), "--plot: has no effect"),
        (("worth", "p.csv", "p.csv", "--plot", "f.txt"), "suffix '.txt' is not one of"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_fitted(
    command, power: Path, arguments: tuple[str, ...], reason: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert reason in " ".join(err.split())


@pytest.mark.slow
def test_optimal_and_tune_write_their_pictures(command, tmp_path: Path) -> None:
    pd.DataFrame(grid()).to_csv(tmp_path / "g.csv", index=False)
    assert command("optimal", "g.csv", "--approach", 2, "--plot", "o.svg")[1].endswith("written: o.svg\n")
    rows = [(s, lr, 3 + np.log(lr / (2 * s**-0.3)) ** 2) for s in SIZES for lr in 2.0 ** np.arange(-12, 0)]
    pd.DataFrame(rows, columns=["params", "lr", "loss"]).to_csv(tmp_path / "s.csv", index=False)
    out = command("tune", "s.csv", "--optimised", "lr", "--against", "params", "--plot", "t.svg")[1]
    assert out.endswith("written: t.svg\n")
    assert (tmp_path / "t.svg").read_text().count("law of lr") == 1
