"""Fits with fewer refits than usual, for tests that assert nothing about where intervals end."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scalebench.laws.intervals import backtest
from scalebench.laws.intervals.bootstrap import DEFAULT_REFITS, Refits

FEW = 20


@contextmanager
def refits_of(n: int) -> Iterator[None]:
    """Draw intervals from ``n`` refits where no other number is asked for: of fits, the command, hold-out forecasts."""
    from scalebench.cli.commands import fit as command  # much to import for tests of kernels, which draw no intervals

    usual, requested = DEFAULT_REFITS.n, command.bootstrap_refits

    def refits(number: int, method: str) -> Refits:
        return requested(n if number == usual else number, method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backtest, "REFITS", n)
        patch.setattr(command, "bootstrap_refits", refits)
        object.__setattr__(DEFAULT_REFITS, "n", n)  # the object that every fit refers to
        try:
            yield
        finally:
            object.__setattr__(DEFAULT_REFITS, "n", usual)
