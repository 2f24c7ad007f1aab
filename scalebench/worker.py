"""One trial in one process: ``python -m scalebench.worker TRIAL_DIR``.

TRIAL_DIR is an attempt folder holding ``trial.json`` (what to train) and ``placement.json`` (cores, threads, peak).
Whatever happens, the folder ends with a ``record.json`` whose status says what; only a process that is killed cannot
write its own, and the engine writes it then.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.store import read_json, write_atomically, write_json, write_record
from scalebench.study import Trial

if TYPE_CHECKING:
    import torch

    from scalebench.collectors.time import StepClock
    from scalebench.train import Validation

HEARTBEAT_EVERY_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the trial in the given folder; exit status 0 when its status is ok, 1 otherwise."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    attempt = Path(folder)
    placement = read_json(attempt / "placement.json")
    pin(placement["cpus"])
    header = read_json(attempt / "trial.json")
    trial = Trial.model_validate(header["trial"])
    import torch

    torch.set_num_threads(placement["threads"])
    status = run_trial(attempt, header, trial, placement)
    return 0 if status == "ok" else 1


def pin(cpus: list[int]) -> None:
    """Keep this process on its own cores, where the system can do that; before torch counts them."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def run_trial(attempt: Path, header: dict[str, Any], trial: Trial, placement: dict[str, Any]) -> str:
    """Run one trial, write its record and return its status."""
    from scalebench.collectors.environment import environment, environment_file

    write_json(attempt / "environment.json", environment_file(trial.device_kind))
    measured = Measured(attempt, header, trial, placement)
    outcome: dict[str, Any] = {"status": "ok"}
    try:
        measured.run()
    # The boundary of a trial: whatever a model, its data or a compiler raises becomes a row; stderr.log has it whole.
    except Exception as error:  # noqa: BLE001
        traceback.print_exception(error)
        message = str(error).strip()[:2000]
        outcome = {"status": status_of(error), "error_class": type(error).__name__, "error_message": message}
    measured.save_steps()
    row = measured.columns | environment(trial.device_kind) | outcome
    write_record(attempt, row | {"invalid_reason": invalid_reason(row)})
    return str(outcome["status"])


def status_of(error: Exception) -> str:
    """Return the status that an exception stands for."""
    import torch

    from scalebench.families import Unsupported
    from scalebench.train import Diverged

    # On a CPU torch reports a failed allocation as a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "oom"
    if isinstance(error, Diverged):
        return "diverged"
    return "unsupported" if isinstance(error, Unsupported) else "failed"


def invalid_reason(row: dict[str, Any]) -> str | None:
    """Return why a row's numbers cannot be true, or None. Such a row stays visible and out of the fits."""
    if (row.get("mfu") or 0) > 1:
        return f"achieved {row['mfu']:.0%} of the peak ({row['peak_source']})"
    negative = [name for name, value in row.items() if name.endswith(("_s", "_bytes")) and (value or 0) < 0]
    return f"negative {', '.join(negative)}" if negative else None


class Measured:
    """A trial under measurement: ``columns`` fills as the run gets on, so that a broken one keeps what it had."""

    def __init__(self, attempt: Path, header: dict[str, Any], trial: Trial, placement: dict[str, Any]) -> None:
        self.attempt, self.trial, self.placement = attempt, trial, placement
        self.begun = time.monotonic()
        self.clock: StepClock | None = None
        self.losses: torch.Tensor | None = None
        self.done = 0
        self.columns: dict[str, Any] = identity_columns(header, trial)
        self.columns["timing_exclusive"] = placement["exclusive"]

    def run(self) -> None:
        """Build, train, validate, then measure memory by category: the whole trial, in order."""
        import torch

        from scalebench.collectors import memory
        from scalebench.collectors.energy import EnergyMeter
        from scalebench.collectors.time import StepClock, time_columns
        from scalebench.train import train, validate

        device, spec = usable_device(self.trial), self.trial.train
        model, optimizer, task = self.prepare(device)
        compiled = compile_model(model) if spec.implementation == "compile" else model
        self.clock, self.losses = StepClock(device), torch.full((spec.steps,), torch.nan, device=device)
        energy = EnergyMeter(device)
        memory.reset_peaks(device)
        self.columns["startup_time_s"] = process_age_s()
        energy.start()
        train(compiled, optimizer, task, spec, self.clock, self.losses, self.check)
        self.columns |= energy.columns()
        self.columns |= time_columns(self.clock) | memory.peak_columns(device)
        self.columns["train_loss_nats"] = float(self.losses[-max(1, spec.steps // 20) :].mean())
        self.columns |= validation_columns(validate(compiled, task, spec, device))
        self.columns |= rate_columns(self.columns, self.trial, self.placement["peaks"][spec.precision])
        self.columns["checkpoint_bytes"] = memory.checkpoint_bytes(model, optimizer)
        self.columns |= memory.split_columns(model, optimizer, backward_of(model, task, spec, device))

    def prepare(self, device: torch.device) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
        """Return model, optimizer and task of the trial, the model's initial weights decided by the seed."""
        import torch

        from scalebench.data import open_data
        from scalebench.families import FAMILIES
        from scalebench.optimizers import build_optimizer

        family, spec = FAMILIES[self.trial.family], self.trial.train
        config = family.Config(**self.trial.model)
        asked = self.trial.data
        data = open_data(asked.source, asked.vocab_size, asked.validation_fraction)
        if data.sha256 != asked.sha256:
            raise RuntimeError(f"the data of {asked.source} changed since the trial was planned; plan again")
        torch.manual_seed(spec.seed)
        model = family.build(config, spec.implementation).to(device)
        task = family.task(config, data, self.trial.data, spec)
        self.columns |= size_columns(family.count(config, spec.sequence_length), task, spec)
        return model, build_optimizer(model, spec), task

    def check(self, done: int) -> None:
        """Look at the losses so far, and tell the engine that this trial lives."""
        from scalebench.train import check_finite

        self.done = self.columns["stop_step"] = done
        now = time.monotonic()
        if now - self.begun >= HEARTBEAT_EVERY_S or done == self.trial.train.steps:
            self.begun = now
            beat = {"step": done, "steps": self.trial.train.steps}
            (self.attempt / "heartbeat.json").write_text(
                json.dumps(beat), encoding="utf-8"
            )  # once a second: not synced
        assert self.losses is not None
        check_finite(self.losses, done)

    def save_steps(self) -> None:
        """Write every sample of the finished steps to steps.parquet."""
        import io

        import pandas as pd

        from scalebench.collectors.time import warm_mask

        if self.clock is None or self.losses is None or not (times := self.clock.step_times_s()).size:
            return
        frame = pd.DataFrame({"step": range(times.size)})
        frame["train_loss_nats"] = self.losses[: times.size].float().cpu().numpy()
        frame["step_time_s"], frame["data_time_s"] = times, self.clock.data_times_s()
        frame["warm"] = warm_mask(times.size)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomically(self.attempt / "steps.parquet", buffer.getvalue())


def validation_columns(found: Validation) -> dict[str, float | None]:
    """Return the held-out loss, its standard error and the metrics, null where there is no number."""
    columns = {"validation_loss_nats": found.loss_nats, "validation_loss_se_nats": found.standard_error_nats}
    columns |= {f"metric_{name}": value for name, value in found.metrics.items()}
    return {name: _number(value) for name, value in columns.items()}


def _number(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is the one number unlike itself


def process_age_s() -> float:
    """Return how long this process has run: interpreter, imports, data and model, before the first step."""
    import psutil

    return time.time() - psutil.Process().create_time()


def usable_device(trial: Trial) -> torch.device:
    """Return the trial's device, or raise ``Unsupported`` with why this machine cannot run it."""
    import torch
    from scalekernels import unavailable_reason

    from scalebench.families import FAMILIES, Unsupported

    implementation = trial.train.implementation
    if trial.device_kind == "cuda" and not torch.cuda.is_available():
        raise Unsupported("the trial asks for a CUDA device and this machine has none")
    if implementation not in FAMILIES[trial.family].IMPLEMENTATIONS:
        raise Unsupported(f"{trial.family} has no implementation {implementation!r}")
    if implementation == "triton" and (reason := unavailable_reason()):
        raise Unsupported(reason)
    return torch.device(trial.device_kind)


def compile_model(model: torch.nn.Module) -> Any:
    """Compile the model in place of running it operation by operation; ``Unsupported`` without a compiler."""
    import torch
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    from scalebench.families import Unsupported

    if next(model.parameters()).device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise Unsupported("torch.compile needs a C++ compiler on a CPU and none was found") from error
    return torch.compile(model)


def backward_of(model: torch.nn.Module, task: Any, spec: Any, device: torch.device) -> Any:
    """Return a function that runs forward and backward of a step, for the memory pass."""
    from scalebench.train import autocast, to_device

    def backward(step: int) -> None:
        with autocast(device, spec.precision):
            loss = task.losses(model, to_device(task.batch(step), device)).mean()
        loss.backward()

    model.train()
    return backward


def identity_columns(header: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """Return the columns that say which trial this is: the axes by their own names."""
    return {
        **trial.model,
        **dict(trial.train),
        "source": trial.data.source,
        "data_vocab_size": trial.data.vocab_size,
        "data_sha256": trial.data.sha256,
        "validation_fraction": trial.data.validation_fraction,
        "noise_std": trial.data.noise_std,
        "study": header["study"],
        "trial_id": header["trial_id"],
        "command": header["command"],
        "requested_params": header["requested"].get("params"),
        "size": header["requested"].get("size"),
        "family": trial.family,
        "device_kind": trial.device_kind,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def size_columns(counts: Any, task: Any, spec: Any) -> dict[str, Any]:
    """Return what the trial's size alone decides. A training step costs three forward passes."""
    samples = spec.steps * spec.batch_size
    epochs = samples / task.samples_per_epoch if task.samples_per_epoch else None
    tokens = samples * task.tokens_per_sample if task.tokens_per_sample else None
    return {
        "params": counts.total,
        "params_non_embedding": counts.non_embedding,
        "flops_per_step": 3 * counts.forward_flops * spec.batch_size,
        "floor_nats": task.floor_nats,
        "samples_seen": samples,
        "tokens_seen": tokens,
        "epochs_seen": epochs,
    }


def rate_columns(columns: dict[str, Any], trial: Trial, peak: dict[str, Any]) -> dict[str, Any]:
    """Return throughput and efficiency at the median step time; mfu is null without a known peak."""
    step_time = columns.get("step_time_median_s")
    rates: dict[str, Any] = {"peak_flops_per_s": peak["flops_per_s"], "peak_source": peak["source"]}
    if not step_time:
        return rates
    achieved = columns["flops_per_step"] / step_time
    rates |= {"samples_per_s": trial.train.batch_size / step_time, "achieved_flops_per_s": achieved}
    if trial.train.sequence_length:
        rates["tokens_per_s"] = trial.train.batch_size * trial.train.sequence_length / step_time
    if peak["flops_per_s"]:
        rates["mfu"] = achieved / peak["flops_per_s"]
    return rates


if __name__ == "__main__":
    sys.exit(main())
