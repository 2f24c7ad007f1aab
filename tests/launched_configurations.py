"""Which shipped configurations the cases of an operation launch, without a GPU and without compiling.

Of operations in ``small`` only those of ``CASES``, in every dtype; of the others those of ``LARGER`` too, as the check
on a GPU runs them.

Triton binds and specialises the arguments of a launch as ever; where it would compile, the configuration is noted and
nothing runs. Tensors are on the CPU, their contents garbage: memory that nobody writes or reads costs no time. What
torch itself would multiply is not multiplied.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import check_case
import torch
from check_coverage import is_launch_of, pointers_of
from scalekernels.providers import Unsupported
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURE = 90
MULTIPROCESSORS = 132


class Nowhere:
    """Triton's driver of a device that is not there."""

    def get_current_target(self) -> GPUTarget:
        """Return what the kernels would be compiled for."""
        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        """Return the default stream."""
        return 0


def pretend_to_have_a_gpu(architecture: int = ARCHITECTURE) -> None:
    """Have every module of the package take tensors on the CPU for those of a device of this architecture."""
    stand_ins: dict[str, Any] = {
        "require_device": lambda **_: None, "architecture": lambda _: architecture, "unavailable_reason": lambda: None,
    }  # fmt: skip
    for name, module in list(sys.modules.items()):
        for attribute, stand_in in stand_ins.items():
            if name.startswith("scalekernels") and hasattr(module, attribute):
                setattr(module, attribute, stand_in)
    properties: Any = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    torch.cuda.get_device_properties = lambda *_: properties


@contextlib.contextmanager
def noted_launches() -> Iterator[list[dict[str, Any]]]:
    """Note, in place of compiling, as ``check_coverage.record_launches`` does on a GPU."""
    launched: list[dict[str, Any]] = []

    def note(
        self: Any, _key: Any, signature: Mapping[str, str], _device: Any, constants: Any, options: Any, *_: Any
    ) -> None:
        names = [parameter.name for parameter in self.params]
        launched.append({
            "function": f"{self.fn.__module__}.{self.fn.__qualname__}",
            "constants": {names[path[0]]: str(value) for path, value in constants.items() if len(path) == 1},
            "pointers": pointers_of(signature),
            "num_warps": options.num_warps,
            "num_stages": options.num_stages,
        })  # fmt: skip

    compile_, JITFunction._do_compile = JITFunction._do_compile, note
    try:
        yield launched
    finally:
        JITFunction._do_compile = compile_


SMALL = 1 << 20  # multiplications of a product; the probes of what a device multiplies rightly have fewer


@contextlib.contextmanager
def unwritten() -> Iterator[None]:
    """Leave what random numbers and products are, but for small ones, as the memory is found."""
    mm, addmm_, randn = torch.mm, torch.Tensor.addmm_, torch.randn

    def product(left: Tensor, right: Tensor, *, out: Tensor | None = None, **options: Any) -> Tensor:
        if left.numel() * right.shape[1] < SMALL:
            return mm(left, right, out=out, **options)
        return left.new_empty((left.shape[0], right.shape[1]), dtype=options.get("out_dtype")) if out is None else out

    def added(total: Tensor, left: Tensor, right: Tensor, **options: Any) -> Tensor:
        return addmm_(total, left, right, **options) if left.numel() * right.shape[1] < SMALL else total

    def empty(*shape: Any, generator: Any = None, **options: Any) -> Tensor:
        return torch.empty(*shape, **options)

    torch.mm, torch.Tensor.addmm_, torch.randn = product, added, empty
    try:
        yield
    finally:
        torch.mm, torch.Tensor.addmm_, torch.randn = mm, addmm_, randn


def launch(module: Any, case: Any) -> None:
    """Call every provider of ours once, forward and backward."""
    tensors = module.inputs(case, "cpu")
    for name, provider in module.providers().items():
        if name.startswith("triton"):
            for backward in (False, True):
                with contextlib.suppress(Unsupported):
                    provider.prepare(case, tensors, backward)()


def launches(module: Any, larger: bool) -> dict[str, int]:
    """How many of the distinct launches of the cases of an operation are of each configuration that it ships."""
    with noted_launches() as launched, unwritten():
        for case in check_case.cases(module, list(check_case.DTYPES), larger=larger):
            launch(module, case)
    entries = {json.dumps(entry, sort_keys=True): entry for entry in launched}.values()
    shipped = (configuration for configuration in module.compilations(ARCHITECTURE) if not configuration.candidate)
    return {
        f"{configuration.kernel} {configuration.label}": sum(is_launch_of(e, configuration) for e in entries)
        for configuration in shipped
    }


def launched_by_operation(operations: Sequence[str], small: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return what :func:`launches` finds for every operation, with few cases for ``small``. Needs a fresh process."""
    modules = {name: import_module(f"scalekernels.{name}") for name in (*operations, *small)}
    driver.set_active(Nowhere())
    pretend_to_have_a_gpu()
    counts = {name: launches(modules[name], larger=True) for name in operations}
    return counts | {f"{name} small": launches(modules[name], larger=False) for name in small}
