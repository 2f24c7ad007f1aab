"""One of a trial's processes without torch: ``python -m light_rank ATTEMPT PARENT``, in the place of a worker's.

Each does what ``trial.json`` has for it under ``light``: sleeps, ends by a signal, or leaves a record with a status.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from scalebench.running import ranks


def run(own: Path, header: dict[str, Any], placement: dict[str, Any]) -> dict[str, Any]:
    """Do what this process is there for; see ``ranks.run_rank``."""
    deed = header["light"][int(os.environ["RANK"])]
    if deed in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[deed])
    elif deed == "sleep":
        (own / f"pid-{os.getpid()}").touch()
        time.sleep(600)
    return header["identity"] | {"status": deed, "error_class": "E", "error_message": "as told"}


if __name__ == "__main__":
    for name in ("join", "leave", "take_share"):
        setattr(ranks, name, lambda *_: {})
    sys.exit(ranks.run_rank(Path(sys.argv[1]), int(sys.argv[2]), run))
