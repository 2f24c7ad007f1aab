"""Fits with fewer refits than usual, for tests that assert nothing about where intervals end."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scalebench.laws.intervals import backtest
from scalebench.laws.intervals.bootstrap import DEFAULT_REFITS


@contextmanager
def refits_of(n: int) -> Iterator[None]:
    """Draw intervals from ``n`` refits, those of fits and of hold-out forecasts."""
    usual = DEFAULT_REFITS.n
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backtest, "REFITS", n)
        object.__setattr__(DEFAULT_REFITS, "n", n)  # the object that every fit refers to
        try:
            yield
        finally:
            object.__setattr__(DEFAULT_REFITS, "n", usual)
