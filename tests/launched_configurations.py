"""Which shipped configurations the cases of an operation launch, without a GPU and without compiling, as JSON.

    python tests/launched_configurations.py attention [--small]

With ``--small`` only those of ``CASES``, in every dtype; else those of ``LARGER`` too, as the check on a GPU runs them.

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
from check_coverage import is_launch_of, pointers_of
from scalekernels.providers import Unavailable
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURE = 90
MULTIPROCESSORS = 132
MOST_PRODUCTS = 10**10  # multiplications of a case: but for bfloat16, larger products take a CPU half a minute


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
    """Print for every configuration that an operation ships how many of those that its cases launch are of it."""
    module, larger = import_module(f"scalekernels.{sys.argv[1]}"), "--small" not in sys.argv
    driver.set_active(Nowhere())
    pretend_to_have_a_gpu()
    with noted_launches() as launched:
        for case in check_case.cases(module, list(check_case.DTYPES), larger=larger):
            products = getattr(case, "tokens", 0) * getattr(case, "width", 0) * getattr(case, "classes", 0)
            if products < MOST_PRODUCTS or case.dtype == torch.bfloat16:
                launch(module, case)
    entries = {json.dumps(entry, sort_keys=True): entry for entry in launched}.values()
    shipped = module.compilations(ARCHITECTURE)
    print(json.dumps({f"{one.kernel} {one.label}": sum(is_launch_of(e, one) for e in entries) for one in shipped}))


if __name__ == "__main__":
    main()
