"""Every provider of ours is launched through Triton's real binder and launchers, on a driver that only checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import stub_driver
from forking import value_of_forked
from scalekernels import OPERATIONS
from stub_driver import BROKEN_BEGIN, built_stub
from support import REPOSITORY

CACHE = REPOSITORY / "results" / "triton"  # Triton's own, by content: compiling every kernel takes most of the time
PROVIDERS = {
    "attention": {"triton", "triton-pointers", "triton-atomic", "triton-atomic-pointers", "triton-descriptors"},
    "cross_entropy": {"triton"},
    "norm": {"triton"},
    "optimizer": {"triton", "triton-bf16-state", "triton-int8-state"},
    "rotary": {"triton"},
}
BROKEN = {
    "sound": None,
    "options": "duplicate argument 'options'",
    "misaligned": "Failed to create tensor map descriptor",
    "threads": "out of resource: threads",
    "grid": "an empty grid",
}


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stub driver as Triton looks for it."""
    return built_stub(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def launched(stub: Path) -> tuple[dict[str, Any], str]:
    """What came of every operation and everything broken, and the driver's lines."""

    def launch_all() -> dict[str, Any]:
        os.environ["TRITON_CACHE_DIR"] = str(CACHE)
        return stub_driver.launch_all(stub, OPERATIONS, list(BROKEN))

    return value_of_forked(launch_all)


@pytest.mark.slow
def test_every_provider_is_launched_forward_and_backward(launched: tuple[dict[str, Any], str]) -> None:
    results = {name: result for name, result in launched[0].items() if name not in BROKEN}
    lines = launched[1].partition(BROKEN_BEGIN)[0]
    assert set(results) == set(PROVIDERS)
    for operation, result in results.items():
        assert not result["problems"], operation
        counts = {key: count for key, count in result["launches"].items() if isinstance(count, int)}
        assert all(counts.values()), {operation: counts}
        assert {key.split()[0] for key in counts} == PROVIDERS[operation]
        unavailable = {" ".join(key.split()[:2]) for key in result["launches"].keys() - counts.keys()}
        steps = {f"{provider} backward" for provider in PROVIDERS["optimizer"]}
        forward = {"triton-atomic forward", "triton-atomic-pointers forward"}
        assert unavailable == {"attention": forward, "optimizer": steps}.get(operation, set())
    total = sum(count for result in results.values() for count in result["launches"].values() if isinstance(count, int))
    assert lines.count("stub driver: launch: ok") == total
    assert "stub driver: descriptor: ok" in lines


@pytest.mark.slow
def test_what_is_broken_is_refused(launched: tuple[dict[str, Any], str]) -> None:
    results, lines = launched[0], launched[1].partition(BROKEN_BEGIN)[2]
    for name, expected in BROKEN.items():
        problem = results[name]["problems"].get(name)
        assert problem is None if expected is None else problem and expected in problem, (name, problem)
    assert "stub driver: descriptor: a base that is no multiple of 16 bytes" in lines
    assert lines.count("stub driver: launch: ok") == 1
