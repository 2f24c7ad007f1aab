"""One process of a comparison: ``python -m scalebench.comparison.process RUN_DIR INDEX``.

RUN_DIR holds ``request.json``. Of every case this process has not measured yet, it times all providers interleaved and
writes ``process-<INDEX>/case-<i>.json``; the first process also checks the results, before and after timing, and
measures memory. ``at.json`` and ``turn.txt`` say what it is at, so that whoever started it knows whom to blame when it
dies; ``crashed.json`` tells a process that is started again whom to leave out, ``uncaptured.json`` whom not to capture
as a CUDA graph.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from scalebench.comparison.ceilings import known_ceilings
from scalebench.comparison.cuda_timing import CaptureBrokenError, clock_for, side_stream
from scalebench.comparison.failure import failure
from scalebench.comparison.judge import Judge
from scalebench.comparison.memory import peak_above_inputs
from scalebench.comparison.operations import Operation, decode, dtype_name, load_operation
from scalebench.comparison.timing import (
    Clock,
    Timer,
    Work,
    calls_per_sample,
    sample_interleaved,
    timed,
    warm_up,
)
from scalebench.comparison.turns import turns
from scalebench.measure.device_lock import DeviceLock, gpu_uuid
from scalebench.measure.statistics import FEWEST, StoppingRule
from scalebench.store import read_json, write_json

DEVICE_LOST = 70  # exit status after an error that leaves the device unusable: start again without who did it
WAITING = "waiting for the GPU"  # the phase in which no provider is at work
CAPTURE_BROKEN = 71  # exit status after a broken capture, which is noted: start again without capturing it


@dataclass
class Process:
    """What all cases of this process share."""

    folder: Path
    index: int
    request: Mapping[str, Any]
    operation: Operation
    device: torch.device
    clock: Clock
    lock: DeviceLock
    crashed: list[dict[str, Any]] = field(default_factory=list)
    uncaptured: list[dict[str, Any]] = field(default_factory=list)

    def at(self, case: int, provider: str, phase: str) -> None:
        """Leave word of what begins now; nothing waits for the disk, as only the death of this process matters."""
        temporary = self.folder / ".at.json.tmp"
        word = {"case": case, "provider": provider, "phase": phase, "time": time.time()}
        temporary.write_text(json.dumps(word), encoding="utf-8")
        temporary.replace(self.folder / "at.json")

    def alone(self, case: int) -> AbstractContextManager[None]:
        """Have the GPU to itself: all that runs on it belongs in here. Word is left while another one has it."""
        return self.lock.held(waiting=lambda: self.at(case, "", WAITING))


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing; exit status 0 when all of it is there."""
    run, index = sys.argv[1:] if arguments is None else arguments
    request = read_json(Path(run) / "request.json")
    folder, device = Path(run) / f"process-{index}", torch.device(request["device"])
    operation = load_operation(request["origin"])
    crashed, uncaptured = (_providers_in(folder / name) for name in ("crashed.json", "uncaptured.json"))
    lock = DeviceLock(gpu_uuid(device))
    with side_stream(device):
        clock = clock_for(device, _refusal_of_all(request, uncaptured))
        process = Process(folder, int(index), request, operation, device, clock, lock, crashed, uncaptured)
        _describe(process, Path(run))
        process.at(-1, "", "imports")
        StoppingRule(**request["rule"]).reason([1.0] * FEWEST, 0.0)  # imports SciPy, while others may still measure
        for number, encoded in enumerate(request["cases"]):
            path = folder / f"case-{number}.json"
            if not path.exists():
                with process.alone(number):
                    write_json(path, measure_case(process, number, decode(operation, encoded)))
                    _clean(process.device)
    return 0


def _refusal_of_all(request: Mapping[str, Any], uncaptured: list[dict[str, Any]]) -> str:
    """Return why nothing must be captured as a CUDA graph, if so."""
    if not request["graphs"]:
        return "not asked for"
    return next((str(one["reason"]) for one in uncaptured if one["case"] < 0), "")


def _providers_in(path: Path) -> list[dict[str, Any]]:
    return list(read_json(path)["providers"]) if path.exists() else []


def _clean(device: torch.device) -> None:
    """Leave the next case nothing of this one: no memory, and no compiled code that would be made shape-generic."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _describe(process: Process, run: Path) -> None:
    """Write the environment once, and the ceilings that this process sees."""
    from scalebench.measure.environment import environment_file

    if not (run / "environment.json").exists():
        write_json(run / "environment.json", environment_file(process.device.type))
    if not (process.folder / "ceilings.json").exists():
        dtypes = {case["dtype"]: getattr(torch, case["dtype"]) for case in process.request["cases"]}
        seconds = min(0.3, process.request["rule"]["timeout_s"])
        try:
            with process.alone(-1):
                process.at(-1, "", "ceilings")
                found = {
                    name: asdict(known_ceilings(process.clock, process.device, dtype, seconds))
                    for name, dtype in dtypes.items()
                }
        except CaptureBrokenError as error:  # not even a copy can be captured here: nothing will be
            _leave_uncaptured(process, -1, "", error)
        write_json(process.folder / "ceilings.json", found)


# --- one case --------------------------------------------------------------------------------------------------------


def measure_case(process: Process, number: int, case: Any) -> dict[str, Any]:
    """Return what this process measured of one case: for each provider its columns and samples."""
    providers, backward = process.operation.module.providers(), process.request["backward"]
    process.at(number, "", "inputs")
    inputs = process.operation.module.inputs(case, device=str(process.device), seed=process.request["seed"])
    found: dict[str, dict[str, Any]] = {}
    works: dict[str, Work] = {}
    judge = _judge(process, number, case, inputs) if process.index == 0 else None
    for name in process.request["providers"]:
        found[name] = _crash_of(process, number, name)
        if found[name]["status"] == "ok":
            process.at(number, name, "prepare")
            works |= _begin(
                process, found[name], name, lambda n=name: providers[n].prepare(case, inputs, backward), judge
            )
    if not any(providers[name].repeatable for name in works):
        judge = None  # nothing is checked again: the oracle's memory is free while the clock runs
    cost = process.operation.module.cost(case, backward)
    timers = _timers(process, number, works, found, cost.bytes_read + cost.bytes_written)
    _sample(process, number, timers, found)
    if judge is not None:
        _check_again(
            process, number, {n: t for n, t in timers.items() if providers[n].repeatable}, found, judge, inputs
        )
    judge = None
    timers.clear()
    if process.index == 0:
        for name in list(works):
            if found[name]["status"] == "ok":
                process.at(number, name, "memory")
                works.pop(name)
                _remember_memory(process, found[name], lambda n=name: providers[n].prepare(case, inputs, backward))
    return {"case": number, "label": case.label, "dtype": dtype_name(case), "providers": found}


def _judge(process: Process, number: int, case: Any, inputs: Mapping[str, Any]) -> Judge:
    crash = _crash_of(process, number, "eager")
    told = None if crash["status"] == "ok" else str(crash["error_message"])
    return Judge.of(
        process.operation.module, case, inputs, process.request["backward"], told,
        lambda provider: process.at(number, provider, "reference"),
    )  # fmt: skip


def _crash_of(process: Process, number: int, name: str) -> dict[str, Any]:
    """Return how a provider killed this process before, or the start of an orderly result."""
    for crash in process.crashed:
        if crash["case"] == number and crash["provider"] == name:
            return {key: crash[key] for key in ("status", "error_class", "error_message")}
    return {"status": "ok"}


def _begin(process: Process, columns: dict[str, Any], name: str, prepare: Any, judge: Judge | None) -> dict[str, Work]:
    """Prepare, call once, judge the result and warm up; empty where the provider cannot."""
    try:
        work, columns["prepare_time_s"] = timed(prepare, process.device)
        result, columns["first_call_time_s"] = timed(work, process.device)
        if judge is not None:
            columns |= judge.columns(result)
        del result
        columns["warm_time_s"] = warm_up(work, process.device)
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is its row's reason
        columns |= failure(error)
        _leave_if_lost(process, error)
        return {}
    return {name: work}


def _leave_if_lost(process: Process, error: Exception) -> None:
    """End this process when a failure has left the device unusable: every later provider would be blamed for it."""
    if process.device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(process.device)
        torch.zeros(1, device=process.device).add_(1).item()
    except RuntimeError:
        (process.folder / "lost.json").write_text(json.dumps(failure(error)), encoding="utf-8")
        sys.exit(DEVICE_LOST)


def _timers(
    process: Process, number: int, works: Mapping[str, Work], found: Mapping[str, dict[str, Any]], moved: int
) -> dict[str, Timer]:
    """Make the timers of what could be prepared; ``moved`` is how many bytes a call moves."""
    timers: dict[str, Timer] = {}
    for name, work in works.items():
        process.at(number, name, "capture")
        calls = calls_per_sample(found[name]["warm_time_s"], process.clock, moved)
        try:
            timers[name] = process.clock.timer(work, calls, _refusal(process, number, name))
        except CaptureBrokenError as error:
            _leave_uncaptured(process, number, name, error)
        except Exception as error:  # noqa: BLE001 - whatever a provider raises is its row's reason
            found[name] |= failure(error)
            _leave_if_lost(process, error)
    return timers


def _refusal(process: Process, number: int, name: str) -> str:
    """Return why a provider must not be captured in a case: a capture of it broke an earlier start of this process."""
    reasons = [one["reason"] for one in process.uncaptured if (one["case"], one["provider"]) == (number, name)]
    return str(reasons[0]) if reasons else ""


def _leave_uncaptured(process: Process, number: int, name: str, error: CaptureBrokenError) -> NoReturn:
    """Note that a provider cannot be captured in a case, and end this process, whose allocator is broken."""
    noted = [*process.uncaptured, {"case": number, "provider": name, "reason": str(error)}]
    write_json(process.folder / "uncaptured.json", {"providers": noted})
    sys.exit(CAPTURE_BROKEN)


def _sample(process: Process, number: int, timers: Mapping[str, Timer], found: Mapping[str, dict[str, Any]]) -> None:
    """Sample the timers, interleaved, and put samples and reasons into ``found``."""
    if not timers:
        return
    rule = StoppingRule(**process.request["rule"])
    rng = random.Random(f"{process.request['seed']}-{process.index}-{number}")
    process.at(number, ", ".join(timers), "samples")
    with turns(process.folder / "turn.txt") as turn:
        sampled = sample_interleaved(timers, rule, rng, turn)
    for name, one in sampled.items():
        columns = found[name]
        if one.error is not None:
            columns |= failure(one.error)
            _leave_if_lost(process, one.error)
        columns |= {"calls_per_sample": one.calls, "timing_method": timers[name].method, "samples_s": one.times_s}
        columns["stop_reason"] = one.stop_reason


def _check_again(
    process: Process, number: int, timers: Mapping[str, Timer], found: Mapping[str, dict[str, Any]], judge: Judge,
    inputs: Mapping[str, Any],
) -> None:  # fmt: skip
    """Run once more what was timed, with its earlier results overwritten, and hold the new ones against the oracle."""
    spared = {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
    for name, timer in timers.items():
        if found[name]["status"] != "ok":
            continue
        process.at(number, name, "check after timing")
        try:
            found[name] |= judge.columns_again(timer.rerun(spared))
        except Exception as error:  # noqa: BLE001 - whatever a provider raises is its row's reason
            found[name] |= failure(error)
            _leave_if_lost(process, error)


def _remember_memory(process: Process, columns: dict[str, Any], prepare: Any) -> None:
    """Measure the peak; it stays null where that is not possible, with the reason in place of the method."""
    try:
        columns["peak_memory_bytes"], columns["memory_method"] = peak_above_inputs(prepare, process.device)
    except Exception as error:  # noqa: BLE001 - the timing stands; the reason is told
        columns |= {"peak_memory_bytes": None, "memory_method": f"not measured: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
