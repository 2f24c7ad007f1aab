"""Every kernel on a real GPU, each case in a process of its own: `pytest -m gpu`. Elsewhere skipped with the reason.

`make gpu` runs the same checks without pytest. A case is checked forward and backward, twice over, and once more after
torch's own attention in the same process; the assembler's version stands in what each writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import check_case
import pytest
import torch
from canary import TILES
from check_coverage import check_coverage
from scalekernels import OPERATIONS, unavailable_reason
from support import REPOSITORY, SOURCE_PATH

NO_GPU = None if torch.cuda.is_available() else "no CUDA device"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU)),
    pytest.mark.skipif(NO_GPU is None and unavailable_reason() is not None, reason=str(unavailable_reason())),
]


@lru_cache(maxsize=1)
def subjects() -> list[tuple[str, str]]:
    """Every case to check: operation and label. Without a GPU one of each, to be skipped."""
    places = []
    for operation in OPERATIONS:
        module = import_module(f"scalekernels.{operation}")
        cases = list(check_case.cases(module, ["float16", "bfloat16", "float32"], larger=True))
        places += [(operation, case.label) for case in (cases[:1] if NO_GPU else cases)]
    return places


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checks of this process write."""
    return tmp_path_factory.mktemp("findings")


def check(findings: Path, *arguments: str) -> dict[str, object]:
    """Run one check in a process of its own and return what it found."""
    output = findings / f"{len(list(findings.iterdir()))}.json"
    command = [
        sys.executable,
        str(REPOSITORY / "kernels" / "tools" / "check_case.py"),
        *arguments,
        "--output",
        str(output),
    ]
    environment = os.environ | {"PYTHONPATH": SOURCE_PATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), f"ended by {done.returncode}: {done.stderr[-2000:]}"
    document = json.loads(output.read_text())
    assert document["versions"]["ptxas"]
    assert document["versions"]["TRITON_PTXAS_PATH"] == os.environ.get("TRITON_PTXAS_PATH")
    assert not document["problems"], document["versions"] | {"problems": document["problems"]}
    return document


@pytest.mark.parametrize("tile", range(len(TILES)), ids=lambda tile: "x".join(map(str, TILES[tile])))
def test_the_witness_of_the_assembler_is_exact(findings: Path, tile: int) -> None:
    check(findings, "canary", str(tile))


@pytest.mark.parametrize(("operation", "label"), subjects())
def test_a_case_is_accurate_steady_and_the_same_after_sdpa(findings: Path, operation: str, label: str) -> None:
    assert check(findings, "case", f"scalekernels.{operation}", label)["launched"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGD", "Adagrad", "RMSprop"])
def test_a_thousand_steps_agree_with_torch(findings: Path, optimizer: str, dtype: str) -> None:
    check(findings, "steps", optimizer, "--dtype", dtype, "--steps", "1000")


@pytest.mark.parametrize("algorithm", ["adamw", "adam", "sgd", "adagrad", "rmsprop", "lion"])
def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased(findings: Path, algorithm: str) -> None:
    check(findings, "rounding", algorithm)


def test_every_shipped_configuration_was_launched_by_a_case(findings: Path) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        pytest.skip("the cases are spread over processes; run pytest -m gpu in one, or make gpu")
    modules = [import_module(f"scalekernels.{operation}") for operation in OPERATIONS]
    checks = check_coverage(modules, findings, "cuda")
    assert not [name for name, result in checks.items() if result["problem"]]
