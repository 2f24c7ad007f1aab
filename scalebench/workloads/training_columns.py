"""What a training run's losses and times become: the table of its samples, throughput and efficiency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from scalebench.families import Counts
from scalebench.measure.clock import warm_mask
from scalebench.tasks import Task
from scalebench.workloads.base import count_columns, step_flops
from scalebench.workloads.training_spec import TrainSpec

if TYPE_CHECKING:
    import pandas as pd

RESUMED_ENERGY = {"energy_j": None, "energy_method": "none: the trial was resumed, its earlier steps are not counted"}


def samples_frame(
    losses: torch.Tensor, times: NDArray[np.float64], data_times: NDArray[np.float64], first_step: int, before: int
) -> pd.DataFrame:
    """Return loss and times in seconds of each step; null times for the steps ``before`` an interruption.

    ``losses`` (steps,) has those of all steps, ``times`` and ``data_times`` those since.
    """
    import pandas as pd

    done, untimed = before + times.size, np.full(before, np.nan)
    return pd.DataFrame(
        {
            "step": range(first_step, first_step + done),
            "train_loss_nats": losses[:done].float().cpu().numpy(),
            "step_time_s": np.concatenate([untimed, times]),
            "data_time_s": np.concatenate([untimed, data_times]),
            "warm": np.concatenate([np.zeros(before, bool), warm_mask(times.size)]),
        }
    )


def rate_columns(columns: dict[str, Any], spec: TrainSpec, peak_flops_per_s: float | None) -> dict[str, Any]:
    """Return throughput and efficiency at the median step time; no mfu without a known peak."""
    step_time = columns.get("step_time_median_s")
    if not step_time:
        return {}
    achieved = columns["flops_per_step"] / step_time
    rates = {"samples_per_s": spec.batch_size / step_time, "achieved_flops_per_s": achieved}
    if spec.sequence_length:
        rates["tokens_per_s"] = spec.batch_size * spec.sequence_length / step_time
    if peak_flops_per_s:
        rates["mfu"] = achieved / (peak_flops_per_s * spec.processes)
    return rates


def final_loss(losses: torch.Tensor) -> float:
    """Return the mean training loss of the last twentieth of the steps, of losses (steps,)."""
    return float(losses[-max(1, len(losses) // 20) :].mean())


def size_columns(counts: Counts, task: Task, spec: TrainSpec, samples_before: int = 0) -> dict[str, Any]:
    """Return what the trial's size alone decides; ``samples_before`` were seen by the parent's run."""
    samples = samples_before + spec.steps * spec.batch_size
    epochs = samples / task.samples_per_epoch if task.samples_per_epoch else None
    tokens = samples * task.tokens_per_sample if task.tokens_per_sample else None
    return count_columns(counts) | {
        "flops_per_step": step_flops(counts, spec.batch_size),
        "floor_nats": task.floor_nats,
        "samples_seen": samples,
        "tokens_seen": tokens,
        "epochs_seen": epochs,
    }
