"""Numbers as people read them."""

from __future__ import annotations

import pytest

from scalebench.reporting.quantities import bounded, interval_words, quantity, uncertain


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (98_304, "", "98.3 k"), (1_536, "", "1,536"), (0.0042123, "s", "4.21 ms"), (2**20 * 12.5, "B", "12.5 MiB"),
        (5.9e-8, "s", "59.0 ns"), (999.9996e-6, "s", "1.00 ms"), (6e11, "FLOP/s", "600 GFLOP/s"), (17.2, "B", "17.2 B"),
        (None, "s", "—"), (float("nan"), "B", "—"), (-0.5, "s", "−500 ms"), (0, "", "0"),
    ],
)  # fmt: skip
def test_quantities_carry_prefix_and_unit(value: float | None, unit: str, expected: str) -> None:
    assert quantity(value, unit).replace("\u00a0", " ") == expected


def test_digits_follow_the_uncertainty() -> None:
    assert uncertain(1.96042, 0.0049) == "1.9604\u00a0±\u00a00.0049"
    assert bounded(0.2677, 0.238, 0.302) == ("0.268", "0.238 to 0.302")
    assert bounded(1.23e-12, 1.04e-12, 1.42e-12) == ("1.23e−12", "1.04e−12 to 1.42e−12")
    assert bounded(0.0, 0.0, 3.14e-13) == ("0", "0 to 3.1e−13")
    assert bounded(9.6, 3.3, 406_747.1) == ("9.6", "3.3 to 410,000")
    assert bounded(50.2, 2.04, 3.7e10) == ("50", "above 2.0")
    assert bounded(3e-9, 2e-9, 1.0, "s") == ("3.0\u00a0ns", "above 2.0\u00a0ns")
    assert bounded(0.0, 0.0, 0.0) == ("0", "no spread")
    assert bounded(9.969e11, 9.924e11, 1.001e12) == ("9.969e+11", "9.924e+11 to 1.001e+12")
    assert bounded(4.1e11, 1.2e11, 9.7e12) == ("4.1e+11", "1.2e+11 to 9.7e+12")
    assert bounded(float("inf"), 5.78e13, float("inf")) == ("not resolved", "above 5.8e+13")
    assert bounded(float("inf"), 5.78e13, float("inf"), "B/s") == ("not resolved", "above 58\u00a0TB/s")
    assert bounded(59.15e-9, 40e-9, 80e-9, "s") == ("59 ns".replace(" ", "\u00a0"), "40 to 80\u00a0ns")


def test_an_interval_that_is_none_is_not_called_one() -> None:
    ends = (bounded(1.0, *interval)[1] for interval in ((0.5, 1.5), (float("nan"), float("nan")), (1.0, 1.0)))
    assert list(map(interval_words, ends)) == ["95 % interval 0.50 to 1.50", "no interval", "no spread"]
