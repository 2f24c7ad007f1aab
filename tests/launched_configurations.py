"""Which shipped configurations the cases of an operation launch, without a GPU and without compiling.

Of operations in ``small`` only those of ``CASES``, in every dtype; of the others those of ``LARGER`` too, as the check
on a GPU runs them. How launches are recorded without a GPU is in ``kernels/tools/launch_requests.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module

import check_case
from check_coverage import is_launch_of
from launch_requests import ARCHITECTURE, prepare, requests_of


def launches(operation: str, larger: bool) -> dict[str, int]:
    """How many of the distinct launches of the cases of an operation are of each configuration that it ships."""
    module = import_module(f"scalekernels.{operation}")
    requests = requests_of(operation, check_case.cases(module, list(check_case.DTYPES), larger=larger))
    entries = {json.dumps(request["launched"], sort_keys=True): request["launched"] for request in requests}.values()
    shipped = (configuration for configuration in module.compilations(ARCHITECTURE) if not configuration.candidate)
    return {
        f"{configuration.kernel} {configuration.label}": sum(is_launch_of(e, configuration) for e in entries)
        for configuration in shipped
    }


def launched_by_operation(operations: Sequence[str], small: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return what :func:`launches` finds for every operation, with few cases for ``small``. Needs a fresh process."""
    prepare([*operations, *small], ARCHITECTURE)
    counts = {name: launches(name, larger=True) for name in operations}
    return counts | {f"{name} small": launches(name, larger=False) for name in small}
