"""Run trials as Ray tasks: each asks for cores and GPUs, and starts the worker of one attempt where Ray has them free.

Ray is embedded, a cluster of this machine alone that ends with the run, unless ``RAY_ADDRESS`` names a running one
(``HOST:PORT`` of its head, or ``auto``). A task gets a path and returns an exit code; the results folder, Python and
this package are at the same paths on all nodes. Ray's own retries are off: an attempt whose Ray worker or node is lost
is ``killed``, and its trial goes back to the queue as a new attempt, at most ``TRIES`` in all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scalebench.errors import InputError, number_of
from scalebench.measure.hardware import usable_cpus
from scalebench.running import processes
from scalebench.running.claims import take
from scalebench.running.engines.base import (
    Begin,
    Resources,
    Tick,
    another_attempt,
    close_attempt,
    close_ended,
    has_record,
    limit_pauses,
    no_tick,
    worker_command,
    worker_environment,
    write_placement,
)

POLL_S = 0.2
ANSWER_S = 5.0  # how long a cluster may take to accept a connection
REACH_S = 20.0
# The head is a gRPC server: it answers the beginning of an HTTP/2 connection with its settings (RFC 9113, 3.4 and 6.5).
HTTP2_SETTINGS = b"\x04"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
HTTP2_HEADER_BYTES = 9  # length (3), type, flags, stream (4)
TRIES = 3
OBJECT_STORE_BYTES = 80 * 2**20  # near Ray's least: nothing but exit codes goes through it


@dataclass
class _Placed:
    """An attempt submitted to Ray: the resources it needs, which try of its trial it is, and its placement group."""

    attempt: Path
    needs: Resources
    tries: int
    group: Any = None


def check(resources: Sequence[Resources]) -> None:
    """Raise ``InputError`` where Ray is not installed, its cluster does not answer, or no node has what a trial needs.

    Starts the embedded cluster, or connects to the running one, for ``place``.
    """
    ray = connect()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for needs in resources:
        if not any(node.get("CPU", 0) >= needs.cpus and node.get("GPU", 0) >= needs.gpus for node in nodes):
            most = [max((float(node.get(kind, 0)) for node in nodes), default=0) for kind in ("CPU", "GPU")]
            ray.shutdown()
            request, limit = (
                f"{number_of(cores, 'core')} and {number_of(gpus, 'GPU')}"
                for cores, gpus in ((needs.cpus, needs.gpus), most)
            )
            raise InputError(f"engine ray: a trial asks for {request} on one node; the nodes have at most {limit}")


def connect() -> Any:
    """Return the module ``ray``, connected to its cluster; raises ``InputError`` where that cannot be."""
    try:
        import ray
    except ImportError as error:
        raise InputError("engine ray: Ray is not installed; install it with pip install '.[ray]'") from error
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS") or "local"
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {
            "num_cpus": len(usable_cpus()), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
    else:
        check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryFile("w+") as messages:
        try:
            with stderr_to(messages):
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"engine ray: {address} {_refusal(error, messages)}") from error
    with contextlib.suppress(ValueError):  # Ray puts its own in place; only the main thread can
        signal.signal(signal.SIGTERM, handler)
    return ray


@contextlib.contextmanager
def stderr_to(file: IO[str]) -> Iterator[None]:
    """Write to a file what this process, Ray's compiled part included, writes to stderr in a ``with`` block."""
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _refusal(error: Exception, messages: IO[str]) -> str:
    """Return the error for a failed connection; ``messages`` is Ray's own output, a line per try."""
    messages.seek(0)
    if "InvalidAuthToken" in messages.read():
        return "requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless it is in ~/.ray/auth_token"
    return f"does not answer: {_first(error)}"


def check_answers(address: str) -> None:
    """Raise ``InputError`` for an address where no gRPC server answers, before Ray tries it for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "//" in host:
        raise InputError(f"engine ray: RAY_ADDRESS is HOST:PORT of the cluster's head, or auto (given {address!r})")
    try:
        with socket.create_connection((host, int(port)), ANSWER_S) as connection:
            connection.sendall(HTTP2_PREFACE)
            reply = connection.recv(HTTP2_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"engine ray: nothing answers at RAY_ADDRESS={address} ({error.strerror or error})") from error
    if reply[3:4] != HTTP2_SETTINGS:
        raise InputError(f"engine ray: what answers at RAY_ADDRESS={address} is not the head of a Ray cluster")


def place(
    attempts: Sequence[Path], resources: Sequence[Resources], *, jobs: int | None = None, tick: Tick = no_tick,
    begin: Begin = take,
) -> Iterator[Path]:  # fmt: skip
    """Run the attempts' workers as Ray tasks; see ``base.Engine``."""
    ray = connect()
    waiting = deque(_Placed(attempt, needs, 1) for attempt, needs in zip(attempts, resources, strict=True))
    most = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))  # a trial takes a core at least
    running: dict[Any, _Placed] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                placed = waiting.popleft()
                if begin(placed.attempt):  # else another driver runs this trial
                    running[submit(ray, placed)] = placed
            for reference in ray.wait(list(running), timeout=POLL_S)[0] if running else ():
                placed = running.pop(reference)
                again = ended(ray, reference, placed)
                if again is None:
                    yield placed.attempt
                else:
                    waiting.append(again)
            if not running and waiting and not reachable(ray):
                ray.shutdown()
                ray = connect()
            tick([placed.attempt for placed in running.values() if (placed.attempt / "placement.json").exists()])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.shutdown()


def reachable(ray: Any) -> bool:
    """Whether the cluster still accepts tasks from this process; not once an embedded cluster's only node is gone."""
    try:
        return bool(ray.get(ray.remote(num_cpus=0, max_retries=0)(process_id).remote(), timeout=REACH_S))
    except ray.exceptions.RayError:
        return False


def process_id() -> int:
    """Return the id of the process that runs this task."""
    return os.getpid()


def submit(ray: Any, placed: _Placed) -> Any:
    """Submit an attempt to Ray and return the reference of its task.

    The cores and GPUs of a trial with several processes are a placement group: all of them on one node, or none yet.
    """
    needs = placed.needs
    options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
    if needs.processes > 1:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = {"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {})
        placed.group = ray.util.placement_group([bundle], strategy="STRICT_PACK")
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placed.group)
    task = ray.remote(**options)(run_worker)
    return task.remote(str(placed.attempt.resolve()), worker_command(placed.attempt), needs.timeout_s)


def run_worker(attempt: str, command: list[str], timeout_s: float | None) -> int | None:
    """Run an attempt's worker, in a task of Ray, and return its exit code; None if it exceeded its time limit.

    The time limit does not count while the worker waits for a GPU. The worker ends with the process of the task.
    """
    folder = Path(attempt)
    write_placement(folder, "ray")
    with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as err:
        process = processes.start(command, worker_environment(), stdout=out, stderr=err)
    late = time.monotonic() + (timeout_s or float("inf"))
    try:
        while (code := process.poll()) is None and time.monotonic() < late:
            if timeout_s is not None and limit_pauses(folder, process.pid):
                late = time.monotonic() + timeout_s
            time.sleep(POLL_S)
        return code
    finally:
        processes.stop(process)


def ended(ray: Any, reference: Any, placed: _Placed) -> _Placed | None:
    """Write the record of an attempt whose worker wrote none; return the new attempt if it was lost."""
    if placed.group is not None:
        ray.util.remove_placement_group(placed.group)
    try:
        code = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # raised by ``run_worker``, such as where no such Python is
        close_attempt(placed.attempt, "failed", "WorkerNotStarted", str(error.cause or error))
    except ray.exceptions.OutOfMemoryError as error:
        close_attempt(placed.attempt, "oom", "OutOfMemory", _first(error))
    except ray.exceptions.RayError as error:
        return _lost(placed, f"{type(error).__name__}: {_first(error)}")
    else:
        close_ended(placed.attempt, code)
    return None


def _lost(placed: _Placed, why: str) -> _Placed | None:
    """Close an attempt whose Ray worker or node was lost as ``killed``; return the next one, if there is one."""
    if has_record(placed.attempt):
        return None
    close_attempt(placed.attempt, "killed", "JobLost", why)
    if placed.tries == TRIES:
        return None
    return _Placed(another_attempt(placed.attempt), placed.needs, placed.tries + 1)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
