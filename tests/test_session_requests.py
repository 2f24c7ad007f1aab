"""What the GPU session compiles ahead: its cache keys are those that Triton computes for the launches themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import launch_requests
import pytest
import stub_driver
import torch
import triton.compiler
from check_coverage import record_launches
from forking import value_of_forked
from launch_requests import cache_folder, compile_request, is_compiled, prepare, requests_of, session_cases
from scalekernels import OPERATIONS
from session_jobs import case_jobs
from stub_driver import built_stub
from triton import knobs
from triton.backends.compiler import GPUTarget


def keys_of_launches_and_requests(operation: str) -> dict[str, Any]:
    """The cache keys of the launches of an operation's cases, and of the requests recorded of them.

    The former are of the arguments that Triton's ``run`` passes to the compiler, the latter of those of ``preload``.
    """
    launched: list[str] = []

    def compiler(source: Any, target: GPUTarget, options: dict[str, Any], **_: Any) -> None:
        launched.append(cache_folder(source, target, options))

    prepare([operation], launch_requests.ARCHITECTURE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.compiler, "compile", compiler)  # before any kernel has taken it
        with launch_requests.recorded() as requests, launch_requests.unwritten():
            note = knobs.runtime.jit_cache_hook
            assert note is not None
            knobs.runtime.jit_cache_hook = lambda **kwargs: note(**kwargs) and False  # go on to "compile"
            for case in session_cases(operation):
                launch_requests.launch(import_module(f"scalekernels.{operation}"), case)
        restored: list[str] = []
        for request in requests:
            launch_requests.with_compiler(
                json.loads(json.dumps(request)), lambda source, target, options: restored.append(
                    cache_folder(source, target, options)
                )
            )  # fmt: skip
    return {"launched": launched, "restored": restored}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_requests_have_the_cache_keys_of_the_launches(operation: str) -> None:
    keys, _ = value_of_forked(lambda: keys_of_launches_and_requests(operation))
    assert keys["restored"] == keys["launched"]
    assert len(set(keys["launched"])) >= 45


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with the stub driver."""
    return built_stub(tmp_path)


def has_loaded_a_driver() -> bool:
    return "libcuda.so" in Path("/proc/self/maps").read_text()


def compile_then_launch(stub: Path, cache: Path) -> dict[str, Any]:
    """Compile what one case of rotary launches; then launch it and another one through Triton's own launcher."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    module = import_module("scalekernels.rotary")
    prepare(["rotary"], launch_requests.ARCHITECTURE)
    known, other = stub_driver.cases("rotary", module)
    requests = requests_of("rotary", [known])
    before = [is_compiled(request) for request in requests]
    for request in requests:
        compile_request(request, launch_requests.ARCHITECTURE)
    values = {"before": before, "after": [is_compiled(request) for request in requests]}
    values |= {"driver": has_loaded_a_driver()}
    launched: list[dict[str, Any]] = []
    record_launches(launched)
    for name, case in (("known", known), ("other", other)):
        stub_driver.cases = lambda *_, case=case: [case]
        for request in requests:  # what this process has compiled or loaded
            launch_requests.function_of(request).device_caches.clear()
        outcome = stub_driver.launch_all(stub, ["rotary"], [])["rotary"]
        values[name] = {"cached": [entry["cached"] for entry in launched], "problems": outcome["problems"]}
        launched.clear()
    return values | {"driver after": has_loaded_a_driver()}


@pytest.mark.slow
def test_a_launch_finds_in_the_cache_what_was_compiled_without_a_driver(stub: Path, tmp_path: Path) -> None:
    values, _ = value_of_forked(lambda: compile_then_launch(stub, tmp_path / "cache"))
    assert not any(values["before"])
    assert all(values["after"])
    assert not values["driver"]
    assert values["known"] == {"cached": [True] * len(values["after"]), "problems": {}}
    assert not all(values["other"]["cached"])
    assert not values["other"]["problems"]
    assert values["driver after"]  # launching does load it


@pytest.mark.slow
def test_all_cases_of_the_checks_are_launched_except_the_goals_of_the_optimizer() -> None:
    for operation in OPERATIONS:
        checked = {job.what["label"] for job in case_jobs(operation, "cuda")}
        launched = {case.label for case in session_cases(operation)}
        assert launched <= checked
        goals = {case.label for case in import_module(f"scalekernels.{operation}").GOALS}
        assert checked - launched == (goals if operation == "optimizer" else set())
        rehearsed = {job.what["label"] for job in case_jobs(operation, "cpu")}
        assert {case.label for case in session_cases(operation, few=True)} == rehearsed


def found_for(capability: int) -> dict[str, Any]:
    prepare(OPERATIONS, capability)
    listed = launch_requests.found(OPERATIONS, capability)
    targets = {json.loads(request["data"])["options"]["arch"] for request in listed["missing"]}
    return {"targets": sorted(targets), "unreached": listed["unreached"], "missing": len(listed["missing"])}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [100, 89])  # of 90 see test_check_coverage
def test_every_shipped_configuration_is_requested_for_the_device_itself(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    listed, _ = value_of_forked(lambda: found_for(capability))
    assert listed["targets"] == [f"sm{capability}"]
    assert not listed["unreached"]
    assert listed["missing"] > 600


def programs_of_norms() -> dict[str, list[int]]:
    """The programs of the backward passes of the cases, which decide a specialised argument, for each kind of device.

    ``torch.cuda.get_device_properties`` is a stand-in, so that there need be none.
    """
    prepare(["norm"], launch_requests.ARCHITECTURE, 78)
    norm = import_module("scalekernels.norm")
    tiles = partial(norm.kernels.tile_for, norm.kernels.BACKWARD_TILES)
    cases = [(case.rows, tiles(case.width)) for case in session_cases("norm")]
    return {device: [norm._programs(torch.device(device), *case) for case in cases] for device in ("cpu", "cuda")}


@pytest.mark.slow
def test_launches_have_the_programs_of_a_device() -> None:
    programs, _ = value_of_forked(programs_of_norms)
    assert programs["cpu"] == programs["cuda"]
    assert max(programs["cpu"]) >= 78


@pytest.fixture
def no_cases() -> Iterator[None]:
    """An operation without cases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_requests, "session_cases", lambda *_: [])
        yield


@pytest.mark.usefixtures("no_cases")
def test_configurations_without_a_case_are_named() -> None:
    listed = launch_requests.found(["rotary"], 90)
    assert listed["distinct"] == 0
    assert "rotary.forward fp16 D16 64x4" in listed["unreached"]
