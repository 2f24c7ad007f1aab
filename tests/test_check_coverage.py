"""Every configuration that ships is launched by a case that the check on a GPU runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scalekernels import OPERATIONS
from support import REPOSITORY, SOURCE_PATH

PROGRAM = Path(__file__).with_name("launched_configurations.py")
PATHS = os.pathsep.join([SOURCE_PATH, str(REPOSITORY / "kernels" / "tools")])


@pytest.fixture(scope="module")
def launched() -> dict[str, dict[str, int]]:
    """How often each shipped configuration is launched on an H100; the kernels' constants differ when interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *OPERATIONS, "--small", "optimizer"], env=environment | {"PYTHONPATH": PATHS},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    assert all(found.values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_shipped_configuration_has_a_case(launched: dict[str, dict[str, int]], operation: str) -> None:
    assert not {name for name, count in launched[operation].items() if not count}


@pytest.mark.slow
def test_a_configuration_without_a_case_is_noticed(launched: dict[str, dict[str, int]]) -> None:
    missing = {name for name, count in launched["optimizer small"].items() if not count}
    assert len(missing) == 21
    assert {"optimizer_update sgd float32 state float32", "optimizer_advance advance lion clip"} < missing
