"""What a node has, detected by the worker that runs on it: its cores and threads, peak rates, and exclusivity.

The engine's ``placement.json`` says what was assigned; the worker checks what it can and adds the rest. A CPU's peak is
a measured matrix product. It is measured per node, precision and number of threads, at most once an hour, and kept in
``RESULTS/<study>/nodes/<machine_id>.json``: the first worker measures for all precisions of the study while the others
wait, and never while another trial of the study trains on the node. The peak is the highest rate on file, so that one
measured while the machine was busy is corrected by the next.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scalebench.measure.device_lock import WAITING
from scalebench.measure.environment import machine_id, package_version
from scalebench.measure.hardware import NOMINAL_FLOPS_PER_S, Peak, cpu_peak, gpu_peak, usable_cpus
from scalebench.store import StoreError, make_folder, read_json, write_json
from scalebench.store.locks import FileLock

POLL_S = 0.05
FRESH_S = 3600.0  # after this the peak is measured again
BUSY = "not measured: other trials were training on this node"


def settle(attempt: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Move this process to its cores, limit its threads, and return the placement with what was detected.

    To be called before torch is used, which then starts its threads. ``header`` is the attempt's ``trial.json``.
    Returns, and writes to ``placement.json``: ``pid``, ``cpus``, ``threads`` of each process, ``exclusive``, ``peaks``
    as {precision: {"flops_per_s", "source"}}, and ``peaks_time_s``, the time that measuring or waiting for them took.
    """
    path = attempt / "placement.json"
    placement = read_json(path) if path.exists() else {}
    assigned, resources = placement.get("cpus") or [], header["resources"]
    if placement.get("gpus"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(placement["gpus"])
    pin(assigned)
    cpus = usable_cpus()
    confirmed = not assigned or not hasattr(os, "sched_getaffinity") or set(cpus) == set(assigned)
    wanted = len(assigned) // header["most_processes"] or resources["cpus"] // resources["processes"]
    threads = min(wanted, len(cpus))
    confirmed = confirmed and len(cpus) >= resources["processes"]
    limit_threads(threads)
    begun, mark = time.monotonic(), attempt / WAITING
    mark.touch()  # a trial's time limit does not count this
    try:
        peaks = node_peaks(attempt.parents[2] / "nodes", header["trial"]["device_kind"], header["precisions"], threads)
    finally:
        mark.unlink(missing_ok=True)
    # A trial has a GPU to itself by the GPU's lock, whatever cores it has.
    alone = not resources["share_device"] if resources["gpus"] else placement.get("exclusive", False) and confirmed
    placement |= {
        "pid": os.getpid(),
        "cpus": cpus,
        "threads": threads,
        "exclusive": alone,
        "peaks": {precision: asdict(peak) for precision, peak in peaks.items()},
        "peaks_time_s": time.monotonic() - begun,  # not the trial's: left out of its startup time
    }
    write_json(path, placement)
    return placement


def pin(cpus: Sequence[int]) -> None:
    """Keep this process on the cores assigned to it, if the system supports and allows it."""
    if cpus and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:  # cores that this process may not use: it stays where it is, and is not called exclusive
            return


def limit_threads(threads: int) -> None:
    """Set the number of threads of torch and what it uses, before and after its import."""
    count = str(threads)
    os.environ |= {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        # Two workers that spin while waiting cost each other a factor of three on two cores.
        "OMP_WAIT_POLICY": "passive",
        "TORCHINDUCTOR_COMPILE_THREADS": count,
    }
    import torch

    torch.set_num_threads(threads)
    if compiler := sys.modules.get("torch._inductor.config"):  # it has read the variable already
        setattr(compiler, "compile_threads", threads)  # noqa: B010 - a module's own settings are not typed


def node_peaks(folder: Path, device_kind: str, precisions: Sequence[str], threads: int) -> dict[str, Peak]:
    """Return the peak for every precision: a GPU's from its datasheet, a CPU's measured, or null with the reason."""
    if device_kind == "cuda":
        return {precision: gpu_peak(precision) for precision in precisions}
    try:
        return _cpu_peaks(folder, precisions, threads)
    except (OSError, StoreError) as error:  # such as a file system without locks
        reason = error.strerror if isinstance(error, OSError) else error
        return dict.fromkeys(precisions, Peak(None, f"not measured: {folder}: {reason}"))


def _cpu_peaks(folder: Path, precisions: Sequence[str], threads: int) -> dict[str, Peak]:
    """Return measured peaks, from the file or measured now, holding the node's lock shared from here to the end.

    Measuring takes the lock exclusively and training takes it shared, so no trial trains while a peak is measured.
    """
    make_folder(folder.parents[1], folder)
    path, lock = folder / f"{machine_id()}.json", FileLock(folder / f"{machine_id()}.lock")
    while (peaks := peaks_on_file(path, precisions, threads, within_s=FRESH_S)) is None:
        if lock.try_take():
            try:
                if peaks_on_file(path, precisions, threads, within_s=FRESH_S) is None:
                    _measure(path, precisions, threads)
            finally:  # else the other workers would wait until this one's trial has ended
                lock.release()
        elif lock.try_take(shared=True):  # another trial trains; it may have measured since the file was read
            return peaks_on_file(path, precisions, threads) or dict.fromkeys(precisions, Peak(None, BUSY))
        else:
            time.sleep(POLL_S)
    lock.take(shared=True)
    return peaks


def _measure(path: Path, precisions: Sequence[str], threads: int) -> None:
    rows = [
        {"precision": name, "threads": threads, "torch": package_version("torch"), "measured_at": time.time()}
        | asdict(cpu_peak(name, threads))
        for name in precisions
    ]
    write_json(path, {"peaks": [*_rows(path), *rows]})


ROW = {"precision", "threads", "torch", "measured_at", "flops_per_s", "source"}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the peaks on file, each with the keys of ``ROW``; none from a damaged file."""
    try:
        rows = read_json(path).get("peaks") if path.exists() else []
    except StoreError:
        return []
    return [row for row in rows if isinstance(row, dict) and set(row) >= ROW] if isinstance(rows, list) else []


def peaks_on_file(
    path: Path, precisions: Sequence[str], threads: int, *, within_s: float = math.inf
) -> dict[str, Peak] | None:
    """Return the highest peaks measured with this torch and number of threads.

    None if a precision was not measured in the last ``within_s`` seconds.
    """
    version, now = package_version("torch"), time.time()
    rows = [row for row in _rows(path) if (row["torch"], row["threads"]) == (version, threads)]
    recent = {row["precision"] for row in rows if now - row["measured_at"] <= within_s}
    if not set(precisions) <= recent:
        return None
    by_rate = sorted(rows, key=lambda row: row["flops_per_s"] or 0.0)
    peaks = {row["precision"]: Peak(row["flops_per_s"], row["source"]) for row in by_rate}
    return {name: peaks[name] for name in precisions}


def planning_rate(study_dir: Path, device_kind: str, precision: str) -> Peak:
    """Return the rate that a plan's times assume, measuring nothing.

    On a CPU: one worker's peak as measured on this machine by earlier trials of the study, or else of another study in
    the same results folder. On a GPU: the datasheet's peak of this machine's. Where that is not known: a nominal rate.
    """
    known = gpu_peak(precision) if device_kind == "cuda" else _measured_rate(study_dir, precision)
    source = f"nominal for {device_kind}: this machine has not been measured yet"
    nominal = Peak(NOMINAL_FLOPS_PER_S[device_kind], source)
    return known if known.flops_per_s else nominal


def _measured_rate(study_dir: Path, precision: str) -> Peak:
    own = study_dir / "nodes" / f"{machine_id()}.json"
    others = sorted(study_dir.parent.glob(f"*/nodes/{own.name}"), key=_measured_at, reverse=True)
    for path in (own, *others):
        rows = [row for row in _rows(path) if row["precision"] == precision and row["flops_per_s"]]
        if rows:
            rate = min(rows, key=lambda row: (row["threads"], -row["flops_per_s"]))
            return Peak(rate["flops_per_s"], f"{rate['source']}, by trials of {path.parents[1].name}")
    return Peak(None, "")


def _measured_at(path: Path) -> float:
    return max((row["measured_at"] for row in _rows(path)), default=0.0)
