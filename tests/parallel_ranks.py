"""What one of two processes does that train trials together, without an engine.

The folder has one folder per trial, with its trial.json; each rank leaves its record there as rank-<n>.json.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from support import PLACEMENT

from scalebench.running.ranks import run_rank
from scalebench.running.worker import trial_row
from scalebench.store import read_json, write_json


def train(name: str, rank: int) -> None:
    """Train all trials of the folder with this name, as this rank."""
    folder = Path(name)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for attempt in sorted(path.parent for path in folder.glob("*/trial.json")):
        own = attempt / f"rank-{rank}"
        own.mkdir()
        write_json(attempt / f"rank-{rank}.json", trial_row(own, read_json(attempt / "trial.json"), PLACEMENT))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def go_on(name: str, rank: int, port: int) -> None:
    """Train the trial of one attempt, as the process of this rank does under torchrun, which listens at ``port``."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    assert run_rank(Path(name), os.getppid(), trial_row) == 0
