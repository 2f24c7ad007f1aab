"""Note what each case of an operation launches, in a process without a GPU and without compiling: printed as JSON.

    python tests/launched_configurations.py attention

Triton binds and specialises the arguments of a launch as ever; where it would compile, the configuration is noted and
nothing runs. Tensors are on the CPU, their contents garbage.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import check_case
import torch
from check_coverage import pointers_of
from scalekernels.providers import Unavailable
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURE = 90
MULTIPROCESSORS = 132
MOST_PRODUCTS = 10**10  # multiplications of a case: larger products take seconds on a CPU


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
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=MULTIPROCESSORS)


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


def launch(module: Any, case: Any) -> None:
    """Call every provider of ours once, forward and backward."""
    given = module.inputs(case, "cpu")
    for name, provider in module.providers().items():
        if name.startswith("triton"):
            for backward in (False, True):
                copies = {key: tensor.clone() for key, tensor in given.items()}
                with contextlib.suppress(Unavailable):
                    provider.prepare(case, copies, backward)()


def main() -> None:
    """Print the configurations that all cases of an operation launch, each once."""
    module = import_module(f"scalekernels.{sys.argv[1]}")
    driver.set_active(Nowhere())
    pretend_to_have_a_gpu()
    with noted_launches() as launched:
        for case in check_case.cases(module, list(check_case.DTYPES), larger=True):
            if getattr(case, "tokens", 0) * getattr(case, "width", 0) * getattr(case, "classes", 0) < MOST_PRODUCTS:
                launch(module, case)
    print(json.dumps(list({json.dumps(entry, sort_keys=True): entry for entry in launched}.values())))


if __name__ == "__main__":
    main()
