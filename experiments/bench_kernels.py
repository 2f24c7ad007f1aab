"""Attention, cross entropy and norms, every provider: `pytest experiments/bench_kernels.py --benchmark-enable`.

With `--benchmark-json=kernels.json`, `scalebench compare --import kernels.json` makes rows of it.
"""

from __future__ import annotations

from typing import Any

import pytest
from bench_support import parameters, run


@pytest.mark.parametrize("backward", [False, True], ids=["results", "gradients"])
@pytest.mark.parametrize(("operation", "case", "provider"), parameters("attention", "cross-entropy", "norm", "rotary"))
def test_kernel(benchmark: Any, operation: Any, case: Any, provider: str, backward: bool) -> None:
    run(benchmark, operation, case, provider, backward)
