"""The environment of a measurement: versions, device, threads, code and command line."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from scalebench.measure.secrets import hide_in_variables, hide_in_words

PACKAGE = Path(__file__).resolve().parent.parent
# Source that can change a trial's results; reports, fits and the command line cannot.
DECISIVE = ("families", "data", "tasks", "workloads", "optim", "measure", "running/worker.py", "running/node.py")

PACKAGES = ("numpy", "pandas", "pyarrow", "scipy", "triton")  # whose versions are recorded, beside that of torch


def command_line() -> str:
    """Return the command line, quoted for a shell, with secrets removed."""
    program = Path(sys.argv[0])
    start = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*start, *hide_in_words(sys.argv[1:])])


@cache
def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Return the first 12 hex digits of the SHA-256 of the source that can change a trial's results."""
    roots = [PACKAGE / name for name in DECISIVE]
    if (kernels := _kernels_root()) is not None:
        roots.append(kernels)
    digest = hashlib.sha256()
    for root in roots:  # root by root: where these lie depends on the installation
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _kernels_root() -> Path | None:
    from importlib.util import find_spec

    spec = find_spec("scalekernels")
    return Path(spec.origin).parent if spec and spec.origin else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Return commit and dirty flag of this package's checkout; null if it is not run from one, or git fails."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"git_commit": None, "git_dirty": None}
    changes = _git("status", "--porcelain", ".")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """Return the processor's name as reported by the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@lru_cache(maxsize=1)
def machine_id() -> str:
    """Return 12 hex digits that distinguish machines without naming them."""
    identity = Path("/etc/machine-id")
    name = identity.read_text(encoding="utf-8").strip() if identity.exists() else ""
    parts = [name or platform.node(), cpu_model(), str(psutil.cpu_count()), str(psutil.virtual_memory().total >> 30)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def ptxas_version() -> str | None:
    """Return the version of the assembler of this GPU's machine code, None without triton."""
    import torch
    from scalekernels.device import assembler

    if package_version("triton") is None:
        return None
    major, minor = torch.cuda.get_device_capability()
    return assembler(10 * major + minor)[1]


@lru_cache(maxsize=1)
def started_at() -> str:
    """Return the time, UTC, of the first call in this process."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device_kind: str) -> dict[str, Any]:
    """Return the record's environment columns. Imports torch."""
    import torch

    cuda = device_kind == "cuda" and torch.cuda.is_available()
    return {
        "machine_id": machine_id(),
        "device_kind": device_kind,
        "device_name": torch.cuda.get_device_name() if cuda else cpu_model(),
        "cpu_model": cpu_model(),
        "threads": torch.get_num_threads(),
        **git_state(),
        "code_fingerprint": code_fingerprint(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "triton_version": package_version("triton"),
        "ptxas_version": ptxas_version() if cuda else None,
        "platform": platform.platform(),
        "started_at": started_at(),
    }


def environment_file(device_kind: str) -> dict[str, Any]:
    """Return the content of environment.json: the columns, and entries too long for a row."""
    import torch

    prefixes = ("OMP_", "MKL_", "CUDA_", "TORCH", "TRITON_", "PYTORCH_", "NCCL_", "SCALEBENCH_")
    variables = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    return environment(device_kind) | {
        "argv": hide_in_words(sys.argv),
        "cpu_count": psutil.cpu_count(),
        "cpu_affinity": psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else None,
        "memory_total_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "environment_variables": hide_in_variables(variables),
        "torch_build": torch.__config__.show(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }
