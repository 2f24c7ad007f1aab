"""Two processes that train trials together, without an engine: ``python parallel_ranks.py FOLDER RANK``.

FOLDER has one folder per trial, with its trial.json; each rank leaves its record there as rank-<n>.json.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from support import PLACEMENT

from scalebench.running.worker import trial_row
from scalebench.store import read_json, write_json

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for attempt in sorted(path for path in folder.iterdir() if path.is_dir()):
        own = attempt / f"rank-{rank}"
        own.mkdir()
        write_json(attempt / f"rank-{rank}.json", trial_row(own, read_json(attempt / "trial.json"), PLACEMENT))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
