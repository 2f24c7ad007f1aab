"""Checks of one process: results before and after timing, and work that goes on after a call returned."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalebench.comparison.draining import Work, work_left_behind
from scalebench.comparison.failure import failure
from scalebench.comparison.judge import Judge
from scalebench.comparison.pool import Pool, copy_in, draw
from scalebench.comparison.process_state import Process, leave_if_lost
from scalebench.comparison.timing import Timer

Columns = Mapping[str, dict[str, Any]]
Pools = Mapping[str, Pool | None]


def judge_of(process: Process, number: int, case: Any, inputs: Mapping[str, Any]) -> Judge:
    """Return the judge of a case's results on ``inputs``."""
    crash = process.crash_of(number, "eager")
    reason = None if crash["status"] == "ok" else str(crash["error_message"])
    return Judge.of(
        process.operation.module, case, inputs, process.request["backward"], reason,
        lambda provider: process.enter(number, provider, "reference"),
    )  # fmt: skip


@dataclass(frozen=True)
class Originals:
    """The inputs of a case, which all providers are checked on, and copies of their values."""

    inputs: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Originals:
        """Copy the tensors among the inputs."""
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return cls(tensors, {name: tensor.detach().clone() for name, tensor in tensors.items()})

    def restored(self) -> dict[str, Any]:
        """Undo what a provider did to the inputs, and return the columns that reject it for that.

        What is unchanged is not written to, as autograd would then refuse the graphs of providers prepared before.
        """
        changed = [name for name, tensor in self.inputs.items() if not _same(tensor, self.values[name])]
        if not changed:
            return {}
        copy_in({name: self.inputs[name] for name in changed}, self.values)
        return {"accepted": False, "error_note": f"changes its inputs in place: {', '.join(changed)}"}


def _same(tensor: Tensor, values: Tensor) -> bool:
    """Return whether two tensors hold the same values, NaN in the same places."""
    return torch.equal(tensor, values) or bool(((tensor == values) | (tensor.isnan() & values.isnan())).all())


def look_for_work_left_behind(
    process: Process, number: int, works: Mapping[str, Work], results: Columns, pools: Pools
) -> None:
    """Record native work that goes on after a call returned, which makes a row invalid; on a CPU only.

    On a GPU the clock waits for the whole device.
    """
    if process.device.type != "cpu":
        return
    for name, work in works.items():
        if results[name]["status"] != "ok":
            continue
        process.enter(number, name, "check for work left behind")
        pool, call_s = pools.get(name), statistics.median(results[name]["samples_s"])
        try:
            left_s = work_left_behind(work, call_s, pool.refresh if pool else lambda: None)
        except Exception as error:  # noqa: BLE001 - whatever a provider raises goes into its row
            results[name] |= failure(error)
            continue
        if left_s is not None:
            spent, call = (f"{1e3 * seconds:.3g} ms" for seconds in (left_s, call_s))
            reason = f"works on after the call returned: {spent} of processor time while the process slept; call {call}"
            results[name]["invalid_reason"] = reason


def check_again(
    process: Process, number: int, case: Any, timers: Mapping[str, Timer], results: Columns,
    inputs: Mapping[str, Any], pools: Pools,
) -> None:  # fmt: skip
    """Run what was timed again, on inputs not seen before and with its earlier results overwritten, and check it."""
    timers = {
        name: timer
        for name, timer in timers.items()
        if results[name]["status"] == "ok" and results[name].get("accepted") is not False
    }
    if not timers:
        return
    process.enter(number, "", "inputs")
    if (pool := next(iter(pools.values()))) is not None:
        values = draw(process.operation.module, case, pool.live, process.request["seed"], "after timing")
        copy_in(pool.live, values)
    judge = judge_of(process, number, case, inputs)
    spared = {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
    for name, timer in timers.items():
        process.enter(number, name, "check after timing")
        try:
            results[name] |= judge.columns_again(timer.rerun(spared))
        except Exception as error:  # noqa: BLE001 - whatever a provider raises goes into its row
            results[name] |= failure(error)
            leave_if_lost(process, error)
