"""A real Slurm of one node on the loopback interface: controller, node and munge, with everything in one folder."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil

from scalebench.running import processes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
START_S = 30.0
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class CannotStartError(RuntimeError):
    """Slurm cannot run here; the message says why."""


@contextmanager
def slurm_node() -> Iterator[dict[str, str]]:
    """Run Slurm for a ``with`` block; yield the variables that its commands need. Raises ``CannotStartError``."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if missing := [program for program in PROGRAMS if shutil.which(program, path=path) is None]:
        raise CannotStartError(f"no {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged wants its socket to be reachable
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    _write_configuration(folder)
    commands = (
        ["munged", "--foreground", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with (folder / "output").open("wb") as output:
            for command in commands:
                process = processes.start(command, environment, stdout=output, stderr=output)
                stack.callback(processes.stop, process)
                _wait_for(folder, process, environment if command == commands[-1] else None)
        stack.callback(_cancel_all, environment)
        yield {"SLURM_CONF": environment["SLURM_CONF"], "PATH": path}


def _write_configuration(folder: Path) -> None:
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = []
    for _ in range(2):
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    values = {
        "host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "ports": ports,
        "memory_mib": min(6000, int(0.9 * psutil.virtual_memory().total / 2**20)),
    }  # fmt: skip
    text = CONFIGURATION.format(folder=folder, cpus=min(2, os.cpu_count() or 1), **values)
    (folder / "slurm.conf").write_text(text)


def _wait_for(folder: Path, process: subprocess.Popen[bytes], environment: dict[str, str] | None) -> None:
    """Wait until a daemon runs; the last one, ``slurmd``, until its node takes jobs."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        if environment is None:
            if process.args[0] != "munged" or (folder / "munge.socket").exists():  # type: ignore[index]
                return
        elif "idle" in _run(environment, "sinfo", "--noheader", "--format=%T"):
            return
    words = (folder / "output").read_text(errors="replace").strip().splitlines()[-2:]
    raise CannotStartError(f"{process.args[0]} did not start: {' | '.join(words)}")  # type: ignore[index]


def _cancel_all(environment: dict[str, str]) -> None:
    _run(environment, "scancel", "--me")
    deadline = time.monotonic() + 10
    while _run(environment, "squeue", "--me", "--noheader").strip() and time.monotonic() < deadline:
        time.sleep(0.2)


def _run(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout
