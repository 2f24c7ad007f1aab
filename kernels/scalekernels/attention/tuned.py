"""Tiles measured on a GPU, from ``tuned.json``, which ``kernels/tools/tuning.py --adopt`` writes.

A row has the fastest tile of a kernel for one head dimension, mask and bucket of lengths, with its time. Cases without
a row use the tables in the code. Tiles affect speed, and results only by rounding. Tuning happens ahead of time and not
at launch, so that every run on a machine uses the same tiles.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# ``SCALEKERNELS_TUNED`` selects another file, for example the one that a GPU session has just measured.
FILE = Path(os.environ.get("SCALEKERNELS_TUNED") or Path(__file__).with_name("tuned.json"))
SHORT = 2048  # the maximum length in the bucket "short"
BUCKETS = ("short", "long")


def bucket(query_length: int, key_length: int) -> str:
    """Return the bucket of a launch by its longer sequence; in "short", a program's prologue and epilogue dominate."""
    return "short" if max(query_length, key_length) <= SHORT else "long"


@functools.cache
def _table() -> Mapping[tuple[str, int, bool, str], Any]:
    table = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        (row["kernel"], row["head_dimension"], row["causal"], row["bucket"]): row | table["sessions"][row["session"]]
        for row in table["rows"]
    }


def row(kernel: str, head_dimension: int, causal: bool, length_bucket: str) -> Any:
    """Return the fields of the tile measured for a kernel, or None."""
    measured = _table().get((kernel, head_dimension, causal, length_bucket))
    return None if measured is None else measured["tile"]


def evidence(kernel: str, head_dimension: int, causal: bool, length_bucket: str) -> str:
    """Return time, length, device and session of a measured tile, in words. Raises ``KeyError`` where none was."""
    measured = _table()[kernel, head_dimension, causal, length_bucket]
    time = f"{1e3 * measured['time_median_s']:.3f} ms at length {measured['length']}"
    return f"{time} on {measured['device']}, {measured['session']}"
