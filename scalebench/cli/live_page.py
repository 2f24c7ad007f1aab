"""`run --report`: a study's page, written again while its trials finish."""

from __future__ import annotations

import time
from pathlib import Path

from scalebench import store

# Writing takes seconds, on the machine that is measuring: at most a twentieth of the time goes into it.
REST = 20.0
LEAST_S = 15.0


class LivePage:
    """The page of a study in its results folder."""

    def __init__(self, study_dir: Path) -> None:
        self.study_dir, self.path = study_dir, study_dir / "report.html"
        self._next_s = 0.0
        self._behind = False

    def finished(self) -> None:
        """Note that another trial has finished."""
        self._behind = True

    def refresh(self) -> None:
        """Write the page where trials have finished since, unless it was written a moment ago."""
        if self._behind and time.monotonic() >= self._next_s:
            self.write(live=True)

    def write(self, *, live: bool = False) -> None:
        """Write the page of what is finished now; one that is ``live`` loads itself again."""
        from scalebench.analysis.study import analyse_all, damaged_elsewhere
        from scalebench.reporting import write
        from scalebench.running.dials import count_dial

        self._behind = False
        begun = time.monotonic()  # imports take seconds, but once
        results = store.read_results(self.study_dir)
        write(analyse_all(results, count_dial), self.path, damaged_elsewhere(results), live=live)
        ended = time.monotonic()
        self._next_s = ended + max(LEAST_S, REST * (ended - begun))
