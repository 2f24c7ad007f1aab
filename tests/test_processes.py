"""Process groups: all of one is stopped, nothing else is, and the reason for its end is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import has_ended

from scalebench.running.processes import exit_reason, last_lines, start, stop

# A leader that starts a child, prints its pid, and then does what it is told.
LEADER = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(process.pid, flush=True)
if "leave" in sys.argv:
    sys.exit(5)
time.sleep(60)
"""


def begin(*words: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the leader; return it and its child's pid."""
    process = start([sys.executable, "-c", LEADER, *words], os.environ, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as lines:
        return process, int(lines.readline())


@pytest.mark.parametrize(("words", "code"), [((), -signal.SIGTERM), (("stubborn",), -signal.SIGKILL)])
def test_the_whole_group_is_stopped_gently_first(words: tuple[str, ...], code: int) -> None:
    process, child = begin(*words)
    begun = time.monotonic()
    assert stop(process, grace_s=0.3) == code
    assert time.monotonic() - begun < 5
    assert has_ended(child)


@pytest.mark.slow
def test_what_an_ended_leader_left_behind_is_stopped_too() -> None:
    process, child = begin("leave")
    assert process.wait(10) == 5
    assert not has_ended(child, 1)
    assert stop(process) == 5
    assert has_ended(child)


def test_a_leader_about_to_end_by_itself_is_given_the_time() -> None:
    process = start([sys.executable, "-c", "import time; time.sleep(0.2); raise SystemExit(7)"], os.environ)
    assert stop(process, patience_s=20) == 7


def test_another_group_is_left_alone() -> None:
    first, second = (start([sys.executable, "-c", "import time; time.sleep(60)"], os.environ) for _ in range(2))
    assert os.getpgid(first.pid) == first.pid != os.getpgid(0)
    stop(first)
    time.sleep(0.1)
    assert second.poll() is None
    stop(second)


def test_the_reason_for_an_end_names_the_signal_or_the_status_and_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    assert last_lines(log) == ""
    log.write_bytes(b"Traceback\n  one\n\xff two\nValueError: three\n\n")
    assert exit_reason(-9) == "SIGKILL"
    assert exit_reason(-40) == "signal 40"
    assert exit_reason(3) == "exit status 3"
    assert exit_reason(3, last_lines(log)) == "exit status 3: ValueError: three"
    assert last_lines(log, lines=2) == "\ufffd two | ValueError: three".replace("\ufffd two", " \ufffd two".strip())
    assert last_lines(log, lines=2, characters=5) == "three"
