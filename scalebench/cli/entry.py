"""The command `scalebench`: where it begins, before the modules of the command line are imported."""

from __future__ import annotations

import os
import signal

from scalebench.cli import INTERRUPTED, STDERR


def main() -> None:
    """Import the command line and run it; an interrupt meanwhile ends the process as a later one does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from scalebench.cli.app import main as run_command  # takes a tenth of a second

    run_command()


def _end(*_: object) -> None:
    """End at once: an exception could be taken for one of the import that it interrupts."""
    try:
        os.write(STDERR, b"interrupted before anything began; run the same command again\n")
    finally:  # also where standard error is closed
        os._exit(INTERRUPTED)
