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

from scalebench.errors import number_of
from scalebench.measure.environment import cpu_model, git_state, package_version

# What is looked for, and how bad it is without: triton is for the fused kernels and torch.compile on a GPU.
REQUIRED: dict[str, Literal["limit", "error"]] = {
    "torch": "error", "triton": "limit", "pandas": "error", "scipy": "error", "seaborn": "error",
}  # fmt: skip
SIGNS = {"note": " ", "warn": "!", "limit": "✗", "error": "✗"}
# By severity: nothing, only noise or limits of this machine, or something without which commands fail.
EXIT_CODES = {"note": 0, "warn": 0, "limit": 0, "error": 1}


@dataclass(frozen=True)
class Finding:
    """One finding: ``note`` is a fact, ``warn`` a cause of noise, ``limit`` something that will not work here, and with
    ``error`` nothing works. ``remedy`` is what to do about it.
    """

    level: Literal["note", "warn", "limit", "error"]
    subject: str
    text: str
    remedy: str = ""


def _software() -> Iterator[Finding]:
    yield Finding("note", "python", f"{platform.python_version()} on {platform.platform()}")
    for name, severity in REQUIRED.items():
        installed = package_version(name)
        remedy = "" if installed else f"pip install {name}, or `make` in the checkout, which installs all"
        yield Finding("note" if installed else severity, name, installed or "not installed", remedy)
    commit = git_state()["git_commit"]
    text = commit if commit else "not running from a git checkout: records have no commit"
    yield Finding("note", "git commit", text)


def _processor() -> Iterator[Finding]:
    from scalebench.measure.hardware import matmul_ceiling, usable_cpus

    usable, present = usable_cpus(), psutil.cpu_count()
    yield Finding("note", "processor", f"{cpu_model()}, {len(usable)} of {number_of(present or 1, 'core')} usable")
    peak = matmul_ceiling("float32", 1, seconds=0.1)
    name, _, method = peak.source.partition(": ")
    yield Finding("note", name, f"{(peak.flops_per_s or 0.0) / 1e9:.3g} GFLOP/s ({method})")
    load = os.getloadavg()[0]
    if load > 0.5 * len(usable):
        text = (
            f"load average is {load:.1f} on {number_of(len(usable), 'core')}: other programs will make step times noisy"
        )
        yield Finding("warn", "load", text, "end other programs, or measure later")


def _memory_and_disk(results: Path) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("note", "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    existing = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    remedy = "make room, or choose another folder with --results" if free < 1 else ""
    yield Finding("warn" if free < 1 else "note", "disk", f"{free:.1f} GiB free for {results}", remedy)
    if not (os.access(existing, os.W_OK) and existing.is_dir()):
        yield Finding("error", "results", f"{existing} is not a folder to write to", "choose another with --results")


def _accelerator() -> Iterator[Finding]:
    import torch
    from scalekernels import unavailable_reason

    from scalebench.measure.hardware import datasheet_peak

    if not torch.cuda.is_available():
        text = 'no usable CUDA device: device = "cuda" trials end as unsupported'
        yield Finding("limit", "cuda", text, _cuda_remedy())
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        peak = datasheet_peak(name, "bfloat16")
        known = f"{peak.flops_per_s:.3g} FLOP/s in bfloat16" if peak.flops_per_s else "peak unknown: mfu stays null"
        remedy = "" if peak.flops_per_s else "add its datasheet to measure/hardware.py, or read achieved FLOP/s instead"
        yield Finding("note" if peak.flops_per_s else "limit", f"cuda:{index}", f"{name}, {known}", remedy)
    if reason := unavailable_reason():
        text = f'implementation = "triton" is unsupported: {reason}'
        yield Finding(
            "limit", "triton kernels", text, "use sdpa or compile here; TRITON_INTERPRET=1 checks the kernels"
        )
    if not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++")):
        text = 'no C++ compiler: implementation = "compile" is unsupported on the CPU'
        yield Finding("limit", "compiler", text, "install g++ or clang")


def _cuda_remedy() -> str:
    """Return what to do where torch sees no CUDA device."""
    import torch

    if shutil.which("nvidia-smi") is None:
        return "none needed on a machine without an NVIDIA GPU; with one, install its driver"
    if torch.version.cuda is None:
        return "this torch is built for CPUs: install one for CUDA (pytorch.org)"
    return "compare the driver's CUDA version (nvidia-smi) with torch's, and look at CUDA_VISIBLE_DEVICES"


def examine(results: Path) -> list[Finding]:
    """Examine software, processor, memory, disk and accelerator."""
    return [*_software(), *_processor(), *_memory_and_disk(results), *_accelerator()]


def show(results: Path, *, as_json: bool) -> int:
    """Print the findings, each with what to do about it.

    The exit code is 1 if something is missing without which commands fail; a limit of this machine is no error.
    """
    from scalebench.cli.output import print_json, say

    findings = examine(results)
    code = max(EXIT_CODES[finding.level] for finding in findings)
    if as_json:
        print_json("doctor", {"findings": [asdict(finding) for finding in findings]})
        return code
    for finding in findings:
        say(f"{SIGNS[finding.level]} {finding.subject}: {finding.text}")
        if finding.remedy:
            say(f"    → {finding.remedy}")
    return code
