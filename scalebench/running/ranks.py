"""A trial of several processes on one node: torchrun starts them, and this module judges how they ended.

``run_processes`` is called by the trial's worker. Each process, ``python -m scalebench.running.worker ATTEMPT PARENT``,
runs the trial on its share of the batches (``workloads/parallel.py``) and leaves its record in ``rank-<n>.json``; what
it measures sample by sample is in the attempt's folder for the first process, and in ``rank-<n>/`` for the others.
torchrun stops the others as soon as one has failed. The trial's record is the first process' if all ended ok, else that
of the process that failed first.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.running import processes
from scalebench.running.node import limit_threads, pin
from scalebench.store import read_header, read_json, write_json, write_record

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import ProcessFailure

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
# Whoever fails is noticed by torchrun, which stops the others; a process may wait as long as its trial may take.
PATIENCE = timedelta(days=7)
TORCHRUN_FOLDER = "torchrun"
WORKER = "scalebench.running.worker"
Row = dict[str, Any]


def run_processes(attempt: Path, header: dict[str, Any], placement: dict[str, Any]) -> str:
    """Run a trial in its ``processes``, write its record and return its status."""
    for path in ranks_written(attempt):  # before Slurm requeued this attempt
        path.unlink()
    failures = launch(attempt, header["resources"]["processes"])
    rows = {int(path.stem.partition("-")[2]): read_json(path) for path in ranks_written(attempt)}
    row = joint_row(rows) if not failures else failed_row(attempt, header, placement, rows, failures)
    write_record(attempt, row)
    return str(row["status"])


def launch(attempt: Path, count: int) -> dict[int, ProcessFailure]:
    """Run ``count`` processes under torchrun until all have ended; return those that failed, by rank.

    A signal that ends this process ends them, too.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])  # all are on this node
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=attempt.name, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(attempt / TORCHRUN_FOLDER)), shutdown_timeout=int(processes.GRACE_S),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", WORKER, str(attempt), str(os.getpid()))
    except ChildFailedError as error:
        return dict(error.failures)
    except SignalException as error:
        signal.signal(error.sigval, signal.SIG_DFL)  # torchrun had its own, and has stopped the processes
        os.kill(os.getpid(), error.sigval)
    finally:
        shutil.rmtree(attempt / TORCHRUN_FOLDER, ignore_errors=True)
    return {}


def ranks_written(attempt: Path) -> list[Path]:
    """Return the records of the processes that wrote one, in the order they were written."""
    return sorted(attempt.glob("rank-*.json"), key=lambda path: path.stat().st_mtime_ns)


def joint_row(rows: Mapping[int, Row]) -> Row:
    """Return the record of a trial whose processes all ended ok: the first one's, and what else ran beside any of them.

    Each waits for the slowest, so if one shares its core with other programs, no process's times are exclusive.
    """
    shares = [row["others_cpu_share"] for row in rows.values() if row.get("others_cpu_share") is not None]
    alone = all(row["timing_exclusive"] for row in rows.values())
    return rows[0] | {"timing_exclusive": alone} | ({"others_cpu_share": max(shares)} if shares else {})


def failed_row(
    attempt: Path, header: dict[str, Any], placement: dict[str, Any], rows: dict[int, dict[str, Any]],
    failures: dict[int, ProcessFailure],
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a trial that failed: of the process whose error it was, not of one that lost its peer."""
    signalled = {rank: failure.exitcode for rank, failure in failures.items() if failure.exitcode < 0}
    wrong = [rank for rank, row in rows.items() if row["status"] != "ok"]
    # A process that lost its peer fails; any other status (diverged, oom, ...) is how that process itself ended, after
    # which the others may be stopped by a signal.
    own = [rank for rank in wrong if rows[rank]["status"] != "failed"]
    if own or (wrong and not signalled):
        first = (own or wrong)[0]  # the rows are in the order they were written
        return rows[first] | {"error_message": f"process {first}: {rows[first]['error_message']}"}
    known = next(iter(rows.values()), {"timing_exclusive": placement["exclusive"], **header["identity"]})
    rank, code = next(iter(signalled.items() or [(rank, failure.exitcode) for rank, failure in failures.items()]))
    reason = processes.exit_reason(code, processes.last_lines(attempt / "stderr.log"))
    return known | {
        "status": "killed" if signalled else "failed",
        "error_class": "ProcessEnded",
        "error_message": f"process {rank} of {header['resources']['processes']} ended: {reason}",
    }


def run_rank(attempt: Path, parent: int, run: Callable[[Path, dict[str, Any], dict[str, Any]], Row]) -> int:
    """Run this process' part of a trial and leave its record; exit status 0 when it is ok.

    ``run`` takes a folder, the header and the placement, and returns the record. This process ends with ``parent``.
    """
    processes.end_with_parent(parent)
    rank = int(os.environ["RANK"])
    header, placement = read_header(attempt), read_json(attempt / "placement.json")
    placement |= take_share(placement, int(os.environ["LOCAL_RANK"]), header["resources"]["processes"])
    own = attempt if rank == 0 else attempt / f"rank-{rank}"
    own.mkdir(exist_ok=True)
    join(header["trial"]["device_kind"])
    row = run(own, header, placement | {"peaks_time_s": 0.0})  # measured before this process began
    write_json(attempt / f"rank-{rank}.json", row)
    if row["status"] != "ok":
        return 1
    leave()
    return 0


def take_share(placement: Mapping[str, Any], number: int, count: int) -> dict[str, Any]:
    """Limit this process to its threads and keep it on its own cores; return those as ``cpus`` of its placement.

    So the load of the trial's other processes is not counted as that of other programs. Where there are fewer cores
    than processes they stay where they are, and ``cpus`` is empty: the time of a shared core belongs to none of them.
    """
    cpus, each = placement["cpus"], len(placement["cpus"]) // count
    own = cpus[number * each : (number + 1) * each]
    pin(own)
    limit_threads(placement["threads"])
    return {"cpus": own}


def join(device_kind: str) -> None:
    """Join the trial's other processes, with the GPU of this process' number where it trains on one."""
    import torch

    if device_kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(BACKENDS[device_kind], timeout=PATIENCE)


def leave() -> None:
    """Wait until all others have finished, so that none misses a message of this process."""
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
