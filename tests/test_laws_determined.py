"""Which parameters a fit calls not determined: those that the points leave open, and no others."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from command_support import COLUMNS, surface

from scalebench.laws import Fit, Refits, fit


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


def test_points_on_the_law_determine_everything() -> None:
    assert fitted(surface(noise=0.01)).undetermined == {}


def test_an_exponent_that_could_have_any_value_is_not_determined_nor_its_coefficient(open_fit: Fit) -> None:
    low, high = open_fit.interval("alpha")
    assert (low, high) == pytest.approx((0.01, 3.0), abs=0.1)  # the range in which alpha is searched
    assert {"alpha", "A"} <= {*open_fit.undetermined}
    assert open_fit.to_dict()["undetermined"] == open_fit.undetermined
    assert "<td>alpha</td><td>not determined</td>" in open_fit._repr_html_()


def test_the_terms_that_a_degenerate_fit_switches_off_are_not_determined() -> None:
    degenerate = fitted(shuffled(2))
    assert degenerate.status == "degenerate"
    assert degenerate.undetermined["alpha"] == "A = 0"
    assert degenerate.undetermined["beta"] == "B = 0"


def test_the_command_prints_no_value_for_what_is_not_determined(command, tmp_path) -> None:
    shuffled(1).to_csv(tmp_path / "mixed.csv", index=False)
    code, out, _ = command("fit", "mixed.csv", "--law", "chinchilla", "--bootstrap", "40", *COLUMNS)
    assert code == 0
    for name in ("alpha", "A"):
        assert re.search(rf"^{name} +not determined", out, re.M)
    assert not re.search(r"^status +converged", out, re.M)
