"""A session of the GPU tools, on a CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from session import Session


class FakeClock:
    """A clock that steps move by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_session(tmp_path: Path, seconds: float = 100.0, **options: Any) -> Session:
    """A session on a CPU with nothing done."""
    clock = options.pop("clock", time.monotonic)
    return Session.begin(
        phase="first", out=tmp_path / "out", work=tmp_path / "work", carried=options.pop("carried", None), workers=2,
        device="cpu", deadline=clock() + seconds, clock=clock,
    )  # fmt: skip
