"""Launch every provider of ours through Triton's own binder and launchers, with a driver that runs nothing.

Small cases are prepared and called forward and backward on tensors in the memory of the CPU: Python, compiler and C do
all that they do on a GPU, up to the driver.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from launch_requests import ARCHITECTURE, pretend_to_have_a_gpu
from scalekernels.providers import Unsupported
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

SOURCE = Path(__file__).with_name("stub_driver.c")
HEADERS = Path(triton.__file__).parent / "backends" / "nvidia" / "include"


def compiler() -> str:
    """The C compiler; skips the test where it, or what it includes, is missing."""
    program = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if program is None:
        pytest.skip("no C compiler")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("no Python.h, which Triton's launcher is compiled with")
    if not (HEADERS / "cuda.h").exists():
        pytest.skip("this Triton brings no cuda.h")
    return program


def built_stub(folder: Path) -> Path:
    """Build the stub driver in a folder, under the name that Triton looks for, and return the folder."""
    named = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    done = subprocess.run([compiler(), f"-I{HEADERS}", str(SOURCE), *named], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Driver(nvidia.CudaDriver):
    """Triton's driver for CUDA without what it asks torch."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda _device: 0
        self.get_device_capability = lambda _device: divmod(ARCHITECTURE, 10)
        self.set_current_device = lambda _device: None

    def get_current_target(self) -> GPUTarget:
        """Return what kernels are compiled for."""
        return GPUTarget("cuda", ARCHITECTURE, 32)


def cases(name: str, module: Any) -> list[Any]:
    """Small cases of an operation that take each of its kernels."""
    half = torch.bfloat16
    if name == "attention":
        return [module.Case(1, 2, 1, 193, 193, size, True, half) for size in (64, 128)]
    if name == "optimizer":
        shapes = ((3, 5, 7), (8193,))
        return [module.Case("odd", shapes, "adamw", half), module.Case("odd", shapes, "lion", max_grad_norm=1.0)]
    # Without rotation, q, k and v are views: nothing is launched forward.
    return [case for case in module.CASES if getattr(case, "rotate", True)][:2]


def launch(name: str) -> dict[str, Any]:
    """Call every provider of ours on every case, forward and backward."""
    module, launches, problems = import_module(f"scalekernels.{name}"), {}, {}
    pretend_to_have_a_gpu()
    for index, case in enumerate(cases(name, module)):
        # Of attention, the other providers differ between head dimensions in constants alone, and take long to compile.
        first_alone = index and name == "attention"
        for provider in ["triton"] if first_alone else [key for key in module.providers() if key.startswith("triton")]:
            for direction in ("forward", "backward"):
                key, before = f"{provider} {direction} {case.label}", COUNT[0]
                try:
                    module.providers()[provider].prepare(case, module.inputs(case, "cpu"), direction == "backward")()
                except Unsupported as reason:
                    launches[key] = str(reason)
                    continue
                except Exception as error:  # noqa: BLE001 - what any launch raises is what is asked for
                    problems[key] = f"{type(error).__name__}: {error}"
                launches[key] = COUNT[0] - before
    return {"launches": launches, "problems": problems}


COUNT = [0]
BROKEN_BEGIN = "stub driver: what is broken"


def count_launches() -> None:
    """Count in COUNT what the C launcher takes without an error; refuse an empty grid, which it passes over."""
    call = nvidia.CudaLauncher.__call__

    def counted(self: Any, *arguments: Any) -> None:
        if min(arguments[:3]) < 1:
            raise ValueError(f"an empty grid: {arguments[:3]}")
        call(self, *arguments)
        COUNT[0] += 1

    nvidia.CudaLauncher.__call__ = counted


@triton.jit
def reserved(out, options):
    """Has an argument of a name that Triton's binder takes for itself."""
    tl.store(out, options)


@triton.jit
def descriptor(source, out):
    """Loads through a descriptor."""
    tl.store(out + tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :], source.load([0, 0]))


def misaligned() -> None:
    """Launch with a base that lies 2 bytes beside a multiple of 16."""
    memory = torch.zeros(64 * 16 + 16, dtype=torch.bfloat16)
    source = memory[1 : 1 + 64 * 16].view(64, 16)
    described = TensorDescriptor.__new__(TensorDescriptor)  # its own check, of the same rule, comes first otherwise
    for field, value in {
        "base": source, "shape": [64, 16], "strides": [16, 1], "block_shape": [16, 16], "padding": "zero",
        "round_f32_to_tf32": False,
    }.items():  # fmt: skip
        setattr(described, field, value)
    descriptor[(1,)](described, torch.zeros(16, 16, dtype=torch.bfloat16))


BROKEN: dict[str, Callable[[], Any]] = {
    "options": lambda: reserved[(1,)](torch.zeros(16), 3),
    "misaligned": misaligned,
    "threads": lambda: descriptor[(1,)](
        TensorDescriptor.from_tensor(torch.zeros(64, 16), [16, 16]), torch.zeros(16, 16), num_warps=64
    ),
    "grid": lambda: descriptor[(0,)](TensorDescriptor.from_tensor(torch.zeros(64, 16), [16, 16]), torch.zeros(16, 16)),
    "sound": lambda: descriptor[(1,)](TensorDescriptor.from_tensor(torch.zeros(64, 16), [16, 16]), torch.zeros(16, 16)),
}


def launch_all(stub: Path, operations: Sequence[str], broken: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the "launches" by provider and direction, and the "problems", of operations and of keys of BROKEN.

    The latter come after a line BROKEN_BEGIN on standard error. ``stub`` is a folder with ``libcuda.so.1``, made of
    ``stub_driver.c``. Needs a process of its own.
    """
    os.environ["TRITON_LIBCUDA_PATH"] = str(stub)
    ctypes.CDLL(str(stub / "libcuda.so.1"), ctypes.RTLD_GLOBAL)  # what Triton loads finds it by its name
    driver.set_active(Driver())
    count_launches()
    outcomes = {name: launch(name) for name in operations}
    os.write(2, f"{BROKEN_BEGIN}\n".encode())  # beside the lines of the driver, whatever sys.stderr is
    for name in broken:
        try:
            BROKEN[name]()
            outcomes[name] = {"problems": {}, "launches": {}}
        except Exception as error:  # noqa: BLE001 - what any launch raises is what is asked for
            outcomes[name] = {"problems": {name: f"{type(error).__name__}: {error}"}, "launches": {}}
    return outcomes
