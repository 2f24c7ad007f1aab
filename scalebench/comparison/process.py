"""One process of a comparison: ``python -m scalebench.comparison.process RUN_DIR INDEX``.

RUN_DIR holds ``request.json``. Of every case this process has not measured yet, it times all providers interleaved and
writes ``process-<INDEX>/case-<i>.json``; the first process also checks the results and measures memory. ``at.json``
says what it is at, so that whoever started it knows whom to blame when it dies; ``crashed.json`` tells a process that
is started again whom to leave out.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from scalekernels.providers import Unavailable

from scalebench.comparison.accuracy import Errors, accuracy_columns, errors_of
from scalebench.comparison.ceilings import measure_ceilings
from scalebench.comparison.memory import peak_above_inputs
from scalebench.comparison.operations import Operation, decode, dtype_name, load_operation
from scalebench.comparison.timing import (
    Work,
    calls_per_sample,
    clock_for,
    sample_interleaved,
    timed,
    warm_up,
)
from scalebench.statistics import StoppingRule
from scalebench.store import read_json, write_json

DEVICE_LOST = 70  # exit status after an error that leaves the device unusable: start again without who did it


@dataclass
class Process:
    """What all cases of this process share."""

    folder: Path
    index: int
    request: Mapping[str, Any]
    operation: Operation
    device: torch.device
    crashed: list[dict[str, Any]] = field(default_factory=list)

    def at(self, case: int, provider: str, phase: str) -> None:
        """Leave word of what begins now."""
        write_json(self.folder / "at.json", {"case": case, "provider": provider, "phase": phase, "time": time.time()})


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing; exit status 0 when all of it is there."""
    run, index = sys.argv[1:] if arguments is None else arguments
    request = read_json(Path(run) / "request.json")
    folder = Path(run) / f"process-{index}"
    crashed = folder / "crashed.json"
    known = read_json(crashed)["providers"] if crashed.exists() else []
    operation = load_operation(request["origin"])
    process = Process(folder, int(index), request, operation, torch.device(request["device"]), known)
    _describe(process, Path(run))
    for number, encoded in enumerate(request["cases"]):
        path = folder / f"case-{number}.json"
        if not path.exists():
            write_json(path, measure_case(process, number, decode(operation, encoded)))
            _clean(process.device)
    return 0


def _clean(device: torch.device) -> None:
    """Leave the next case nothing of this one: no memory, and no compiled code that would be made shape-generic."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _describe(process: Process, run: Path) -> None:
    """Write the environment once, and the ceilings that this process sees."""
    from scalebench.collectors.environment import environment_file

    if not (run / "environment.json").exists():
        write_json(run / "environment.json", environment_file(process.device.type))
    if not (process.folder / "ceilings.json").exists():
        process.at(-1, "", "ceilings")
        dtypes = {case["dtype"]: getattr(torch, case["dtype"]) for case in process.request["cases"]}
        seconds = min(0.3, process.request["rule"]["timeout_s"])
        found = {name: asdict(measure_ceilings(process.device, dtype, seconds)) for name, dtype in dtypes.items()}
        write_json(process.folder / "ceilings.json", found)


# --- one case --------------------------------------------------------------------------------------------------------


def measure_case(process: Process, number: int, case: Any) -> dict[str, Any]:
    """Return what this process measured of one case: for each provider its columns and samples."""
    providers, backward = process.operation.module.providers(), process.request["backward"]
    inputs = process.operation.module.inputs(case, device=str(process.device), seed=process.request["seed"])
    found: dict[str, dict[str, Any]] = {}
    works: dict[str, Work] = {}
    judge = Judge.of(process, number, case, inputs) if process.index == 0 else None
    for name in process.request["providers"]:
        found[name] = _crash_of(process, number, name)
        if found[name]["status"] == "ok":
            process.at(number, name, "prepare")
            works |= _begin(
                process, found[name], name, lambda n=name: providers[n].prepare(case, inputs, backward), judge
            )
    judge = None  # frees the reference before the clock starts
    _sample(process, number, works, found)
    if process.index == 0:
        for name in list(works):
            if found[name]["status"] == "ok":
                process.at(number, name, "memory")
                works.pop(name)
                _remember_memory(process, found[name], lambda n=name: providers[n].prepare(case, inputs, backward))
    return {"case": number, "label": case.label, "dtype": dtype_name(case), "providers": found}


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


def failure(error: BaseException) -> dict[str, Any]:
    """Return the columns that say how a provider failed; ``Unavailable`` is a state, not a failure."""
    status = "unavailable" if isinstance(error, Unavailable) else "failed"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        status = "oom"
    if status == "failed":
        traceback.print_exception(error)
    message = str(error).strip()[:2000] or "no message"
    return {"status": status, "error_class": type(error).__name__, "error_message": message}


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


def _sample(process: Process, number: int, works: Mapping[str, Work], found: Mapping[str, dict[str, Any]]) -> None:
    """Time what could be prepared, interleaved, and put samples and reasons into ``found``."""
    if not works:
        return
    clock, rule = clock_for(process.device), StoppingRule(**process.request["rule"])
    calls = {name: calls_per_sample(found[name]["warm_time_s"], clock) for name in works}
    rng = random.Random(f"{process.request['seed']}-{process.index}-{number}")
    process.at(number, ", ".join(works), "samples")
    for name, one in sample_interleaved(works, calls, clock, rule, rng).items():
        columns = found[name]
        if one.error is not None:
            columns |= failure(one.error)
            _leave_if_lost(process, one.error)
        columns |= {"calls_per_sample": one.calls, "timing_method": clock.method(one.calls), "samples_s": one.times_s}
        columns["stop_reason"] = one.stop_reason


def _remember_memory(process: Process, columns: dict[str, Any], prepare: Any) -> None:
    """Measure the peak; it stays null where that is not possible, with the reason in place of the method."""
    try:
        columns["peak_memory_bytes"], columns["memory_method"] = peak_above_inputs(prepare, process.device)
    except Exception as error:  # noqa: BLE001 - the timing stands; the reason is told
        columns |= {"peak_memory_bytes": None, "memory_method": f"not measured: {type(error).__name__}: {error}"}


@dataclass
class Judge:
    """Holds results of a case against the float64 reference, and against the eager path's own error."""

    expected: Mapping[str, Any] | None
    eager: Errors | None
    reason: str = ""

    @classmethod
    def of(cls, process: Process, number: int, case: Any, inputs: Mapping[str, Any]) -> Judge:
        """Compute the reference and the eager error, or note why that is not possible here."""
        module, backward = process.operation.module, process.request["backward"]
        process.at(number, "", "reference")
        try:
            expected = module.results(case, inputs, backward)
        except Exception as error:  # noqa: BLE001 - without a reference there is no check, which every row says
            return cls(None, None, f"the float64 reference failed: {type(error).__name__}: {error}"[:300])
        eager = module.providers().get("eager")
        if eager is None:
            return cls(expected, None, "the operation has no provider called eager")
        if (crash := _crash_of(process, number, "eager"))["status"] != "ok":
            return cls(expected, None, crash["error_message"])
        process.at(number, "eager", "reference")
        try:
            return cls(expected, errors_of(eager.prepare(case, inputs, backward)(), expected))
        except Exception as error:  # noqa: BLE001 - as above
            return cls(expected, None, f"{type(error).__name__}: {error}"[:300])

    def columns(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return the accuracy columns of one provider's result."""
        if self.expected is None:
            return {"accepted": None, "error_note": f"not checked: {self.reason}"}
        return accuracy_columns(errors_of(result, self.expected), self.eager, self.reason)


if __name__ == "__main__":
    sys.exit(main())
