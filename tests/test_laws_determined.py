"""Which parameters a fit calls not determined: those that the points leave open, and no others."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from command_support import COLUMNS, surface

from scalebench.laws import Fit, Refits, fit
from scalebench.laws.catalogue import EXPONENT
from scalebench.laws.intervals.determined import WHOLE_RANGE, WIDEST, undetermined


def shuffled(seed: int):
    """A grid of sizes and tokens whose losses belong to other points."""
    table = surface()
    table["L"] = np.random.default_rng(seed).permutation(table["L"])
    return table


def fitted(table) -> Fit:
    points = {role: table[name].to_numpy() for role, name in {"params": "N", "tokens": "D", "loss": "L"}.items()}
    return replace(fit(points, "chinchilla"), refits=Refits(n=40))


@pytest.fixture(scope="module")
def open_fit() -> Fit:
    return fitted(shuffled(1))


@pytest.fixture(scope="module")
def planted() -> Fit:
    return fitted(surface(noise=0.01))


def test_points_on_the_law_determine_everything(planted: Fit) -> None:
    assert planted.undetermined == {}


@pytest.mark.slow
def test_an_exponent_that_could_have_any_value_is_not_determined_nor_its_coefficient(open_fit: Fit) -> None:
    (low, high), (least, most) = open_fit.interval("alpha"), EXPONENT
    assert least <= low < high <= most
    assert high - low >= WHOLE_RANGE * (most - least)  # the share from which any exponent would do
    assert {"alpha", "A"} <= {*open_fit.undetermined}
    assert open_fit.to_dict()["undetermined"] == open_fit.undetermined
    assert "<td>alpha</td><td>not determined</td>" in open_fit._repr_html_()


def test_the_terms_that_a_degenerate_fit_switches_off_are_not_determined() -> None:
    degenerate = fitted(shuffled(2))
    assert degenerate.status == "degenerate"
    assert degenerate.undetermined["alpha"] == "A = 0"
    assert degenerate.undetermined["beta"] == "B = 0"


@pytest.mark.parametrize("end", EXPONENT)
def test_an_exponent_at_the_end_of_its_range_is_not_determined_if_its_term_may_vanish(planted: Fit, end: float) -> None:
    """With its coefficient's interval down to about zero the data do without the term, and any exponent would do."""
    least, most = EXPONENT
    middle = (least + most) / 2
    at_end = (end, middle) if end == least else (middle, end)
    clear = {"E": (1.5, 2.0), "A": (100.0, 900.0), "alpha": (0.3, 0.4), "B": (100.0, 900.0), "beta": (0.2, 0.4)}
    assert undetermined(planted, clear) == {}
    vanishing = (900.0 / WIDEST / 2, 900.0)
    both = undetermined(planted, clear | {"alpha": at_end, "A": vanishing})
    assert both["alpha"] == "its 95 % interval ends where its search does"
    assert {*both} == {"alpha", "A"}
    assert {*undetermined(planted, clear | {"alpha": at_end, "A": (0.0, 900.0)})} == {"alpha", "A"}
    # One of the two alone does not do: a steep term that is there, nor an exponent well inside whose term may be small.
    assert undetermined(planted, clear | {"alpha": at_end}) == {}
    inside = tuple(value + (1e-3 if end == least else -1e-3) for value in at_end)
    assert "alpha" not in undetermined(planted, clear | {"alpha": inside, "A": vanishing})
    # What the other term's coefficient does is nothing to this exponent.
    assert "alpha" not in undetermined(planted, clear | {"alpha": at_end, "B": vanishing})


@pytest.mark.slow
def test_the_command_prints_no_value_for_what_is_not_determined(command, tmp_path) -> None:
    shuffled(1).to_csv(tmp_path / "mixed.csv", index=False)
    code, out, _ = command("fit", "mixed.csv", "--law", "chinchilla", "--bootstrap", "40", *COLUMNS)
    assert code == 0
    for name in ("alpha", "A"):
        assert re.search(rf"^{name} +not determined", out, re.M)
    assert not re.search(r"^status +converged", out, re.M)
