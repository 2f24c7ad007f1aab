"""Snapshots of a trial that trains, from which its next attempt goes on where this one was interrupted.

They are kept where the study asks for it (``run.checkpoint_every_steps``, ``run.checkpoint_every_s``)::

    attempt/resume.json     written last: the trial, the code, N, and the SHA-256 of each file
    attempt/resume-N/       weights and state after N steps, as an attempt keeps them at its end, and the losses so far

Only the newest is kept, and none once the trial has its result. One that is damaged, of other settings or of other code
is passed over with a line on stderr.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from scalebench.measure.environment import code_fingerprint
from scalebench.store import StoreError, write_checked_json
from scalebench.store.files import read_checked_json
from scalebench.study import Trial, trial_id
from scalebench.workloads.checkpoints import copy_checkpoints
from scalebench.workloads.state import TrainState, read_state, save_state
from scalebench.workloads.weights import WEIGHTS, check_sha256, load_weights, replaced, save_weights, sha256_of

INDEX = "resume.json"
LOSSES = "losses.safetensors"
KINDS = dict.fromkeys(("trial", "code", "weights_sha256", "state_sha256", "losses_sha256"), str) | dict.fromkeys(
    ("step", "attempts", "skipped"), int
)


@dataclass(frozen=True)
class Snapshot:
    """Where an earlier attempt stood after ``done`` steps; without one, a trial begins.

    ``losses`` are those of the steps (done,), ``attempts`` is how many attempts took them, and ``skipped`` how many
    steps the loss scaler of float16 skipped.
    """

    done: int = 0
    attempts: int = 0
    skipped: int = 0
    folder: Path | None = None
    weights_sha256: str = ""
    state: TrainState = field(default_factory=TrainState)
    losses: Tensor = field(default_factory=lambda: torch.empty(0))

    def restore(self, model: nn.Module, optimizer: Optimizer, scaler: GradScaler, losses: Tensor) -> None:
        """Set weights, optimizer, random numbers and the losses so far; nothing for a trial that begins."""
        if self.folder is not None:
            load_weights(model, self.folder, self.weights_sha256)
            self.state.restore(optimizer)
            self.state.restore_generators(scaler)
            losses[: self.done] = self.losses


@dataclass(frozen=True)
class Standing:
    """What a snapshot is made of: a run after ``done`` steps, of which earlier attempts took some."""

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    generators: dict[str, Tensor]
    losses: Tensor  # (done,)
    done: int
    end: int  # steps of the whole chain of runs
    samples: int
    attempts: int
    skipped: int


def write_snapshot(attempt: Path, trial: Trial, standing: Standing) -> None:
    """Write a snapshot, and then delete those before it, also of other attempts of the trial.

    Where it cannot be written, as on a full disk, the trial goes on and the earlier one stays.
    """
    folder = attempt / f"resume-{standing.done}"
    try:
        folder.mkdir(exist_ok=True)
        about = _write_files(folder, standing)
        about |= {"trial": trial_id(trial), "code": code_fingerprint(), "step": standing.done}
        write_checked_json(attempt / INDEX, about | {"attempts": standing.attempts, "skipped": standing.skipped})
    except (OSError, safetensors.SafetensorError) as error:
        print(f"{folder}: not written ({error}): a next attempt goes on from an earlier step", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return
    delete_snapshots(attempt.parent, keep=folder)


def _write_files(folder: Path, standing: Standing) -> dict[str, Any]:
    """Write weights, state and losses, and return their SHA-256."""
    weights, _ = save_weights(standing.model, folder)
    state = save_state(
        folder, standing.optimizer, standing.scaler, standing.generators, standing.end, standing.samples
    )  # fmt: skip
    with replaced(folder / LOSSES) as temporary:
        save_file({"losses": standing.losses.detach().cpu().contiguous()}, str(temporary))
    return {"weights_sha256": weights, "state_sha256": state, "losses_sha256": sha256_of(folder / LOSSES)}


def find_snapshot(attempt: Path, trial: Trial) -> Snapshot:
    """Return the snapshot with the most steps of any attempt of the trial; an empty one if there is none.

    What the earlier attempt kept for branches (``run.checkpoint_steps``) is copied to this one.
    """
    for _, path in sorted(_indexed(attempt.parent), reverse=True):
        try:
            snapshot = _read(path, trial)
        except StoreError as error:
            print(f"not resumed from: {error}", file=sys.stderr)
            continue
        print(f"resumed after step {snapshot.done} of {path.parent.name}", file=sys.stderr)
        copy_checkpoints(path.parent, attempt, snapshot.done)
        return snapshot
    return Snapshot()


def _indexed(trial_dir: Path) -> Iterator[tuple[int, Path]]:
    """Yield the steps of each snapshot of a trial, and the file that it was read from."""
    for path in trial_dir.glob(f"attempt-*/{INDEX}"):
        try:
            step = read_checked_json(path)[0].get("step")
        except StoreError as error:
            print(f"not resumed from: {error}", file=sys.stderr)
            continue
        yield (step if type(step) is int else 0), path


def _read(path: Path, trial: Trial) -> Snapshot:
    """Read a snapshot; ``StoreError`` where it is damaged, of another trial or of other code."""
    about, checked = read_checked_json(path)
    kinds = {name: type(value) for name, value in about.items()}
    if not checked or kinds != KINDS:
        raise StoreError(f"{path}: not the description of a snapshot")
    for name, expected in (("trial", trial_id(trial)), ("code", code_fingerprint())):
        if about[name] != expected:
            raise StoreError(f"{path}: of another {name}")
    folder = path.with_name(f"resume-{about['step']}")
    check_sha256(folder / WEIGHTS, about["weights_sha256"])
    check_sha256(folder / LOSSES, about["losses_sha256"])
    state = read_state(folder, about["state_sha256"])
    losses = load_file(folder / LOSSES)["losses"]
    return Snapshot(
        about["step"], 1 + about["attempts"], about["skipped"], folder, about["weights_sha256"], state, losses
    )  # fmt: skip


def delete_snapshots(trial_dir: Path, keep: Path | None = None) -> None:
    """Delete the snapshots of all attempts of a trial, except ``keep``, as far as they can be deleted."""
    for attempt in trial_dir.glob("attempt-*"):
        if attempt.is_symlink():
            continue
        if keep is None or keep.parent != attempt:
            with contextlib.suppress(OSError):
                (attempt / INDEX).unlink()
        for folder in attempt.glob("resume-*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)
