"""One process of a comparison: ``python -m scalebench.comparison.process RUN_DIR INDEX``.

RUN_DIR holds ``request.json``. Of every case this process has not measured yet, it times all providers interleaved and
writes ``process-<INDEX>/case-<i>.json``; the first process also checks the results, before and after timing, and
measures memory. ``phase.json`` and ``turn.txt`` hold the current provider and phase, so that the parent process can
tell which provider killed this one. For a process that is started again, ``crashed.json`` lists the providers to leave
out, and ``uncaptured.json`` those not to capture as a CUDA graph.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from scalebench.comparison.ceilings import known_ceilings
from scalebench.comparison.checks import Originals, check_again, judge_of, look_for_work_left_behind
from scalebench.comparison.cuda_timing import CaptureBrokenError, clock_for, side_stream
from scalebench.comparison.draining import Work
from scalebench.comparison.failure import failure
from scalebench.comparison.judge import Judge
from scalebench.comparison.memory import peak_above_inputs
from scalebench.comparison.operations import decode, dtype_name, load_operation
from scalebench.comparison.pool import Pool, draw_pool
from scalebench.comparison.process_state import CAPTURE_BROKEN, Process, leave_if_lost
from scalebench.comparison.timing import (
    Timer,
    calls_per_sample,
    sample_interleaved,
    timed,
    warm_up,
)
from scalebench.comparison.turns import turns
from scalebench.measure.device_lock import DeviceLock, gpu_uuid
from scalebench.measure.statistics import FEWEST, StoppingRule
from scalebench.store import read_json, write_json


def main(arguments: list[str] | None = None) -> int:
    """Measure the missing cases; return exit status 0 when all are measured."""
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
        process.enter(-1, "", "imports")
        StoppingRule(**request["rule"]).reason([1.0] * FEWEST, 0.0)  # imports SciPy, while others may still measure
        for number, encoded in enumerate(request["cases"]):
            path = folder / f"case-{number}.json"
            if not path.exists():
                with process.alone(number):
                    write_json(path, measure_case(process, number, decode(operation, encoded)))
                    _clean(process.device)
    return 0


def _refusal_of_all(request: Mapping[str, Any], uncaptured: list[dict[str, Any]]) -> str:
    """Return why nothing may be captured as a CUDA graph, or ""."""
    if not request["graphs"]:
        return "graphs are switched off"
    return next((str(entry["reason"]) for entry in uncaptured if entry["case"] < 0), "")


def _providers_in(path: Path) -> list[dict[str, Any]]:
    return list(read_json(path)["providers"]) if path.exists() else []


def _clean(device: torch.device) -> None:
    """Free memory and compiled code; with code of the last case around, torch would compile with dynamic shapes."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _describe(process: Process, run: Path) -> None:
    """Write the environment once per run, and the ceilings measured by this process."""
    from scalebench.measure.environment import environment_file

    if not (run / "environment.json").exists():
        write_json(run / "environment.json", environment_file(process.device.type))
    if not (process.folder / "ceilings.json").exists():
        dtypes = {case["dtype"]: getattr(torch, case["dtype"]) for case in process.request["cases"]}
        seconds = min(0.3, process.request["rule"]["timeout_s"])
        try:
            with process.alone(-1):
                process.enter(-1, "", "ceilings")
                ceilings = {
                    name: asdict(known_ceilings(process.clock, process.device, dtype, seconds))
                    for name, dtype in dtypes.items()
                }
        except CaptureBrokenError as error:  # not even a copy can be captured, so nothing will be
            _leave_uncaptured(process, -1, "", error)
        write_json(process.folder / "ceilings.json", ceilings)


# --- one case --------------------------------------------------------------------------------------------------------


def measure_case(process: Process, number: int, case: Any) -> dict[str, Any]:
    """Return what this process measured of one case: for each provider its columns and samples."""
    providers, backward = process.operation.module.providers(), process.request["backward"]
    process.enter(number, "", "inputs")
    inputs = process.operation.module.inputs(case, device=str(process.device), seed=process.request["seed"])
    results: dict[str, dict[str, Any]] = {}
    works: dict[str, Work] = {}
    originals = Originals.of(inputs) if process.index == 0 else None
    judge = judge_of(process, number, case, inputs) if process.index == 0 else None
    if judge is not None and judge.broken:  # nothing is worth timing
        return _measured(number, case, {name: dict(judge.broken) for name in process.request["providers"]})
    if originals is not None:
        originals.restored()  # what eager or the oracle changed
    for name in process.request["providers"]:
        results[name] = process.crash_of(number, name)
        if results[name]["status"] == "ok":
            process.enter(number, name, "prepare")
            works |= _begin(
                process, results[name], name, lambda n=name: providers[n].prepare(case, inputs, backward), judge
            )
            results[name] |= originals.restored() if originals is not None else {}
    judge = originals = None  # frees their memory before timing
    process.enter(number, "", "inputs")
    pools = _pools(process, case, inputs, [name for name in works if providers[name].repeatable])
    cost = process.operation.module.cost(case, backward)
    timers = _timers(process, number, works, results, cost.bytes_read + cost.bytes_written, pools)
    _sample(process, number, timers, results)
    if process.index == 0:
        look_for_work_left_behind(process, number, {name: works[name] for name in timers}, results, pools)
        check_again(process, number, case, {n: t for n, t in timers.items() if n in pools}, results, inputs, pools)
    timers.clear()
    pools.clear()
    if process.index == 0:
        for name in list(works):
            if results[name]["status"] == "ok":
                process.enter(number, name, "memory")
                works.pop(name)
                _measure_memory(process, results[name], lambda n=name: providers[n].prepare(case, inputs, backward))
    return _measured(number, case, results)


def _measured(number: int, case: Any, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"case": number, "label": case.label, "dtype": dtype_name(case), "providers": results}


def _pools(process: Process, case: Any, inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Pool | None]:
    """Return the pool of fresh inputs, the same for all of ``names``, the providers whose calls can be repeated."""
    module, backward, seed = process.operation.module, process.request["backward"], process.request["seed"]
    return dict.fromkeys(names, draw_pool(module, case, inputs, backward, seed) if names else None)


def _begin(process: Process, columns: dict[str, Any], name: str, prepare: Any, judge: Judge | None) -> dict[str, Work]:
    """Prepare, call once, check the result and warm up; return nothing if the provider fails."""
    try:
        work, columns["prepare_time_s"] = timed(prepare, process.device)
        result, columns["first_call_time_s"] = timed(work, process.device)
        if judge is not None:
            columns |= judge.columns(result)
        del result
        columns["warm_time_s"] = warm_up(work, process.device)
    except Exception as error:  # noqa: BLE001 - whatever a provider raises goes into its row
        columns |= failure(error)
        leave_if_lost(process, error)
        return {}
    return {name: work}


def _timers(
    process: Process, number: int, works: Mapping[str, Work], results: Mapping[str, dict[str, Any]], moved: int,
    pools: Mapping[str, Pool | None],
) -> dict[str, Timer]:  # fmt: skip
    """Return the timers of the prepared providers; ``moved`` is the number of bytes that a call moves."""
    timers: dict[str, Timer] = {}
    for name, work in works.items():
        process.enter(number, name, "capture")
        calls = calls_per_sample(results[name]["warm_time_s"], process.clock, moved)
        try:
            timers[name] = process.clock.timer(work, calls, _refusal(process, number, name), pools.get(name))
        except CaptureBrokenError as error:
            _leave_uncaptured(process, number, name, error)
        except Exception as error:  # noqa: BLE001 - whatever a provider raises goes into its row
            results[name] |= failure(error)
            leave_if_lost(process, error)
    return timers


def _refusal(process: Process, number: int, name: str) -> str:
    """Return why a provider must not be captured in a case, because that broke an earlier start of this process."""
    reasons = [entry["reason"] for entry in process.uncaptured if (entry["case"], entry["provider"]) == (number, name)]
    return str(reasons[0]) if reasons else ""


def _leave_uncaptured(process: Process, number: int, name: str, error: CaptureBrokenError) -> NoReturn:
    """Record that a provider cannot be captured in a case, and exit, as the allocator of this process is broken."""
    uncaptured = [*process.uncaptured, {"case": number, "provider": name, "reason": str(error)}]
    write_json(process.folder / "uncaptured.json", {"providers": uncaptured})
    sys.exit(CAPTURE_BROKEN)


def _sample(process: Process, number: int, timers: Mapping[str, Timer], results: Mapping[str, dict[str, Any]]) -> None:
    """Sample the timers, interleaved, and add samples and stop reasons to ``results``."""
    if not timers:
        return
    rule = StoppingRule(**process.request["rule"])
    rng = random.Random(f"{process.request['seed']}-{process.index}-{number}")
    process.enter(number, ", ".join(timers), "samples")
    with turns(process.folder / "turn.txt") as turn:
        sampled = sample_interleaved(timers, rule, rng, turn)
    for name, samples in sampled.items():
        columns = results[name]
        if samples.error is not None:
            columns |= failure(samples.error)
            leave_if_lost(process, samples.error)
        columns |= {"calls_per_sample": samples.calls, "timing_method": timers[name].method}
        columns |= {"samples_s": samples.times_s, "stop_reason": samples.stop_reason}


def _measure_memory(process: Process, columns: dict[str, Any], prepare: Any) -> None:
    """Measure the peak memory; if that fails, it is null, and the method gives the reason."""
    try:
        columns["peak_memory_bytes"], columns["memory_method"] = peak_above_inputs(prepare, process.device)
    except Exception as error:  # noqa: BLE001 - the timing is still valid
        columns |= {"peak_memory_bytes": None, "memory_method": f"not measured: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
