"""Describe this machine, and what will not work on it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from scalebench.measure.environment import cpu_model, git_state, package_version


@dataclass(frozen=True)
class Finding:
    """One finding: ``note`` is a fact, ``limit`` something that will not work, ``warn`` a cause of noise."""

    level: Literal["note", "limit", "warn"]
    subject: str
    text: str


def _software() -> Iterator[Finding]:
    yield Finding("note", "python", f"{platform.python_version()} on {platform.platform()}")
    for name in ("torch", "triton", "pandas", "scipy", "seaborn"):
        installed = package_version(name)
        yield Finding("note" if installed else "limit", name, installed or "not installed")
    commit = git_state()["git_commit"]
    text = commit if commit else "not running from a git checkout: records have no commit"
    yield Finding("note", "git commit", text)


def _processor() -> Iterator[Finding]:
    from scalebench.measure.hardware import matmul_ceiling, usable_cpus

    usable, present = usable_cpus(), psutil.cpu_count()
    yield Finding("note", "processor", f"{cpu_model()}, {len(usable)} of {present} cores usable")
    peak = matmul_ceiling("float32", 1, seconds=0.1)
    name, _, how = peak.source.partition(": ")
    yield Finding("note", name, f"{(peak.flops_per_s or 0.0) / 1e9:.3g} GFLOP/s ({how})")
    load = os.getloadavg()[0]
    if load > 0.5 * len(usable):
        text = f"load average is {load:.1f} on {len(usable)} cores: other programs will make step times noisy"
        yield Finding("warn", "load", text)


def _memory_and_disk(results: Path) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("note", "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    existing = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    yield Finding("warn" if free < 1 else "note", "disk", f"{free:.1f} GiB free for {results}")
    if not os.access(existing, os.W_OK):
        yield Finding("limit", "results", f"{existing} is not writable: choose another folder with --results")


def _accelerator() -> Iterator[Finding]:
    import torch
    from scalekernels import unavailable_reason

    from scalebench.measure.hardware import datasheet_peak

    if not torch.cuda.is_available():
        yield Finding("limit", "cuda", 'no usable CUDA device: device = "cuda" trials end as unsupported')
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        peak = datasheet_peak(name, "bfloat16")
        known = f"{peak.flops_per_s:.3g} FLOP/s in bfloat16" if peak.flops_per_s else "peak unknown: mfu stays null"
        yield Finding("note" if peak.flops_per_s else "limit", f"cuda:{index}", f"{name}, {known}")
    if reason := unavailable_reason():
        yield Finding("limit", "triton kernels", f'implementation = "triton" is unsupported: {reason}')
    if not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++")):
        yield Finding("limit", "compiler", 'no C++ compiler: implementation = "compile" is unsupported on the CPU')


def examine(results: Path) -> list[Finding]:
    """Examine software, processor, memory, disk and accelerator."""
    return [*_software(), *_processor(), *_memory_and_disk(results), *_accelerator()]


def show(results: Path, *, as_json: bool) -> int:
    """Print the findings; the exit code is always 0, since a limit is not an error."""
    from scalebench.cli.output import print_json

    findings = examine(results)
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return 0
    signs = {"note": " ", "limit": "✗", "warn": "!"}
    for finding in findings:
        print(f"{signs[finding.level]} {finding.subject}: {finding.text}")
    return 0
