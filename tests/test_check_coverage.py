"""Every configuration that ships is launched by a case that the check on a GPU runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from check_coverage import is_launch_of
from scalekernels import OPERATIONS
from support import SOURCE_PATH

PROGRAM = Path(__file__).with_name("launched_configurations.py")


@cache
def launched(operation: str) -> list[dict[str, Any]]:
    """What the cases of an operation launch on an H100."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), operation], env=environment | {"PYTHONPATH": SOURCE_PATH},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_shipped_configuration_has_a_case(operation: str) -> None:
    shipped = list(import_module(f"scalekernels.{operation}").compilations(90))
    entries = launched(operation)
    missing = [f"{one.kernel} {one.label}" for one in shipped if not any(is_launch_of(e, one) for e in entries)]
    assert shipped
    assert not missing


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_configuration_without_a_case_is_noticed(operation: str) -> None:
    shipped = list(import_module(f"scalekernels.{operation}").compilations(90))
    entries = [entry for entry in launched(operation) if not is_launch_of(entry, shipped[0])]
    assert len(entries) < len(launched(operation))
    assert not any(is_launch_of(entry, shipped[0]) for entry in entries)
