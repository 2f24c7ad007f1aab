"""A worker of the GPU session: reads jobs from its standard input, one JSON object per line, and answers likewise.

Kinds: ``case`` (check a case of an operation), ``steps`` (an optimizer over many steps), ``rounding`` (its stochastic
rounding), ``canary`` (the assembler's witness), ``candidate`` (a tile of a kernel: compile it, and hold it to the
shipped one's result), ``command`` (a program that ends by itself). Nothing but answers is written to standard output.
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


def check_one(job: Job) -> dict[str, Any]:
    """Check one case of an operation and tell which configurations it launched."""
    import check_case

    module = check_case.load(job["module"])
    return {"checks": check_case.check_case(module, check_case.find(module, job["label"]), job["device"])}


def check_steps(job: Job) -> dict[str, Any]:
    """Check an optimizer over many steps against torch's."""
    import check_case
    import check_steps as steps

    return {"checks": steps.check_steps(job["optimizer"], check_case.DTYPES[job["dtype"]], job["device"], job["steps"])}


def check_rounding(job: Job) -> dict[str, Any]:
    """Check what one step of an optimizer with stochastic rounding writes."""
    import check_rounding as rounding

    return {"checks": rounding.check_rounding(job["optimizer"], job["device"])}


def check_canary(job: Job) -> dict[str, Any]:
    """Check the witness of one tile."""
    import check_case

    return {"checks": check_case.check_canary(job["index"], job["device"])}


def check_candidate(job: Job) -> dict[str, Any]:
    """Compile and launch one candidate of a tunable kernel; it has to agree with the shipped one."""
    import tuning

    return tuning.try_candidate(job)


def run_command(job: Job) -> dict[str, Any]:
    """Run a program; a problem is an exit status other than those expected, with its last words."""
    done = subprocess.run(job["command"], capture_output=True, text=True, errors="replace", timeout=job["timeout_s"])
    said = (done.stderr + done.stdout).strip()
    print(said, file=sys.stderr, flush=True)
    good = done.returncode in job.get("expected", [0])
    return {"problem": None if good else f"exit status {done.returncode}: {said[-1500:]}", "said": said[-2000:]}


KINDS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "case": check_one,
    "steps": check_steps,
    "rounding": check_rounding,
    "canary": check_canary,
    "candidate": check_candidate,
    "command": run_command,
}


def answer(job: Job, launched: list[dict[str, Any]]) -> dict[str, Any]:
    """Do one job. An error becomes its problem; ``lost`` says that the device is unusable in this process."""
    launched.clear()
    try:
        found = KINDS[job["kind"]](job)
    except Exception as error:  # noqa: BLE001 - whatever a job raises is its result
        traceback.print_exc()
        text = "".join(traceback.format_exception(error))
        return {"status": "failed", "problem": f"{type(error).__name__}: {error}"[:1500], "trace": text[-3000:],
                "launched": list(launched), "lost": is_lost()}  # fmt: skip
    problems = {name: check["problem"] for name, check in found.get("checks", {}).items() if check.get("problem")}
    problem = "; ".join(f"{name}: {text}" for name, text in problems.items()) or found.get("problem")
    return found | {"status": "failed" if problem else "ok", "problem": problem, "launched": list(launched)}


def is_lost() -> bool:
    """Tell whether the device no longer works for this process."""
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
    """Give memory back, so that other workers can have it."""
    import torch

    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def serve(answers: TextIO) -> None:
    """Answer jobs until standard input ends."""
    import torch
    from check_coverage import record_launches

    torch.set_num_threads(1)  # many workers share the cores
    launched: list[dict[str, Any]] = []
    record_launches(launched)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        found = answer(json.loads(line), launched)
        print(json.dumps(found, default=str), file=answers, flush=True)
        if found.get("lost"):
            return
        clean()


def main() -> int:
    """Keep standard output for answers: whatever the jobs print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
