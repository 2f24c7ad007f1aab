"""Optimizer steps, every provider: `pytest experiments/bench_optimizers.py --benchmark-enable`.

With `--benchmark-json=optimizers.json`, `scalebench compare --import optimizers.json` makes rows of it.
"""

from __future__ import annotations

from typing import Any

import pytest
from bench_support import parameters, run


@pytest.mark.parametrize(("operation", "case", "provider"), parameters("optimizer"))
def test_step(benchmark: Any, operation: Any, case: Any, provider: str) -> None:
    run(benchmark, operation, case, provider, backward=False)
