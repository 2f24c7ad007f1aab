"""Every configuration that ships is launched by a case that the check on a GPU runs."""

from __future__ import annotations

import pytest
from forking import value_of_forked
from launched_configurations import launched_by_operation
from scalekernels import OPERATIONS


@pytest.fixture(scope="module")
def launched() -> dict[str, dict[str, int]]:
    """How often each shipped configuration is launched on an H100."""
    counts: dict[str, dict[str, int]]
    counts, _ = value_of_forked(lambda: launched_by_operation(OPERATIONS, ["optimizer"]))
    assert all(counts.values())
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_shipped_configuration_has_a_case(launched: dict[str, dict[str, int]], operation: str) -> None:
    assert not {name for name, count in launched[operation].items() if not count}


@pytest.mark.slow
def test_a_configuration_without_a_case_is_noticed(launched: dict[str, dict[str, int]]) -> None:
    missing = {name for name, count in launched["optimizer small"].items() if not count}
    assert len(missing) == 21
    assert {"optimizer_update sgd float32 state float32", "optimizer_advance advance lion clip"} < missing
