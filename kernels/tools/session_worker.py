"""A worker of the GPU session: reads jobs from standard input and writes results to standard output, as JSON lines.

Kinds of job: ``case`` (a case of an operation), ``steps`` (an optimizer over many steps), ``rounding`` (its stochastic
rounding), ``canary`` (the assembler), ``mechanism`` (of the GPU), ``sums`` (how the loss sums weight's gradient),
``candidate`` (compile a tile of a kernel and compare its results with the shipped one's), ``compile`` (what a launch
would compile, without a GPU), ``command`` (a program). Standard output has nothing but results.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Job = Mapping[str, Any]


def run_case(job: Job) -> dict[str, Any]:
    """Check one case of an operation."""
    import check_case

    module = check_case.load(job["module"])
    return {"checks": check_case.check_case(module, check_case.find(module, job["label"]), job["device"])}


def run_steps(job: Job) -> dict[str, Any]:
    """Check an optimizer over many steps against PyTorch's."""
    from check_case import DTYPES
    from check_steps import check_steps

    return {"checks": check_steps(job["optimizer"], DTYPES[job["dtype"]], job["device"], job["steps"])}


def run_rounding(job: Job) -> dict[str, Any]:
    """Check one step of an optimizer with stochastic rounding."""
    from check_rounding import check_rounding

    return {"checks": check_rounding(job["optimizer"], job["device"])}


def run_canary(job: Job) -> dict[str, Any]:
    """Check the assembler canary of one tile."""
    from check_case import check_canary

    return {"checks": check_canary(job["index"], job["device"])}


def run_mechanism(job: Job) -> dict[str, Any]:
    """Check one mechanism of the GPU by itself."""
    from check_case import check_mechanism

    return _informing(check_mechanism(job["name"], job["device"]))


def run_sums(job: Job) -> dict[str, Any]:
    """Check how the loss sums weight's gradient."""
    from check_case import check_sums

    return _informing(check_sums(job["device"]))


def _informing(checks: Mapping[str, Any]) -> dict[str, Any]:
    return {"checks": checks, "information": [f"{name}: {check['information']}" for name, check in checks.items()]}


def run_candidate(job: Job) -> dict[str, Any]:
    """Compile and launch one candidate of a tunable kernel and compare its results with the shipped one's."""
    from tuning import try_candidate

    return try_candidate(job)


def run_compile(job: Job) -> dict[str, Any]:
    """Compile what a launch would into Triton's cache, without a GPU."""
    from launch_requests import compile_request

    compile_request(job, job["capability"])
    return {}


def run_command(job: Job) -> dict[str, Any]:
    """Run a program; an unexpected exit status is a problem, reported with the end of the output."""
    done = subprocess.run(job["command"], capture_output=True, text=True, errors="replace", timeout=job["timeout_s"])
    output = (done.stderr + done.stdout).strip()
    print(output, file=sys.stderr, flush=True)
    good = done.returncode in job.get("expected", [0])
    return {"problem": None if good else f"exit status {done.returncode}: {output[-1500:]}", "output": output[-2000:]}


KINDS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "case": run_case,
    "steps": run_steps,
    "rounding": run_rounding,
    "canary": run_canary,
    "mechanism": run_mechanism,
    "sums": run_sums,
    "candidate": run_candidate,
    "compile": run_compile,
    "command": run_command,
}


def answer(job: Job, launched: list[dict[str, Any]]) -> dict[str, Any]:
    """Run a job and return its result; an exception is its problem. ``lost``: the process cannot use the device."""
    launched.clear()
    try:
        result = KINDS[job["kind"]](job)
    except Exception as error:  # noqa: BLE001 - any exception is the job's result
        traceback.print_exc()
        text = "".join(traceback.format_exception(error))
        return {"status": "failed", "problem": f"{type(error).__name__}: {error}"[:1500], "trace": text[-3000:],
                "launched": list(launched), "lost": is_lost()}  # fmt: skip
    problems = {name: check["problem"] for name, check in result.get("checks", {}).items() if check.get("problem")}
    problem = "; ".join(f"{name}: {text}" for name, text in problems.items()) or result.get("problem")
    return result | {"status": "failed" if problem else "ok", "problem": problem, "launched": list(launched)}


def is_lost() -> bool:
    """Return whether the device has stopped working for this process."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return True
    return False


def clean() -> None:
    """Free cached device memory for other workers."""
    import torch

    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def serve(answers: TextIO) -> None:
    """Run jobs until standard input ends or the device is lost."""
    import torch
    from check_coverage import record_launches

    torch.set_num_threads(1)  # many workers share the cores
    launched: list[dict[str, Any]] = []
    record_launches(launched)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        result = answer(json.loads(line), launched)
        print(json.dumps(result, default=str), file=answers, flush=True)
        if result.get("lost"):
            return
        clean()


def main() -> int:
    """Serve jobs; what they print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
