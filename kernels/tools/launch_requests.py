"""What Triton compiles for the launches of an operation's cases, found without a GPU, and compiled without one.

    python kernels/tools/launch_requests.py attention,norm --arch 90 --processors 132 --output requests.json

The cache key of a launch depends on more than its configuration: on which arguments are multiples of 16 or equal to 1,
and even on empty attributes. So the launches themselves are made: Triton binds and specialises their arguments as ever,
on tensors in CPU memory that nobody writes or reads, and where it would compile, the request is recorded and nothing
runs. ``compile_request`` compiles a request into Triton's cache, by Triton's own ``preload``. Neither makes a CUDA
context, as the driver is a stand-in.

A launch on a GPU has the same key if what it is bound to is the same: the addresses' alignment (16 bytes; the CUDA
allocator's is 512), the compute capability, the number of multiprocessors where a constant depends on it, and the
environment. The session counts the launches of its checks that were not in the cache after all.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import check_case
import torch
from check_coverage import is_launch_of, launch_of
from scalekernels import OPERATIONS
from scalekernels.cache_keys import settled
from scalekernels.providers import Unsupported
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import get_cache_invalidating_env_vars

ARCHITECTURE, MULTIPROCESSORS = 90, 132  # of an H100 or H200
SMALL = 1 << 20  # multiplications of a product; the probes of what a device multiplies rightly have fewer
Request = dict[str, Any]


class Nowhere:
    """Triton's driver of a device that is not there."""

    def __init__(self, capability: int = ARCHITECTURE) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """Return what the kernels would be compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        """Return the default stream."""
        return 0


def rows_of(capability: int) -> int:
    """Return the architecture whose tiles a compute capability (times ten) uses, as ``tiles.architecture`` does."""
    return {9: 90, 10: 100}.get(capability // 10, 80)


def pretend_to_have_a_gpu(architecture: int = ARCHITECTURE, multiprocessors: int = MULTIPROCESSORS) -> None:
    """Make every loaded module of the package take tensors on the CPU for those of such a device."""
    stand_ins: dict[str, Any] = {
        "require_device": lambda **_: None, "architecture": lambda _: architecture, "unavailable_reason": lambda: None,
        "INTERPRETED_MULTIPROCESSORS": multiprocessors,  # a number of programs that is an argument of a norm's kernel
    }  # fmt: skip
    for name, module in list(sys.modules.items()):
        for attribute, stand_in in stand_ins.items():
            if name.startswith("scalekernels") and hasattr(module, attribute):
                setattr(module, attribute, stand_in)
    properties: Any = SimpleNamespace(multi_processor_count=multiprocessors)
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.is_current_stream_capturing = lambda: False


@contextlib.contextmanager
def unwritten() -> Iterator[None]:
    """Leave random numbers and products, except small ones, as their memory is found."""
    math: Any = torch  # mypy lets no function of a module be replaced
    mm, addmm_, randn = math.mm, math.Tensor.addmm_, math.randn

    def product(left: Tensor, right: Tensor, *, out: Tensor | None = None, **options: Any) -> Tensor:
        if left.numel() * right.shape[1] < SMALL:
            return mm(left, right, out=out, **options)
        return left.new_empty((left.shape[0], right.shape[1]), dtype=options.get("out_dtype")) if out is None else out

    def added(total: Tensor, left: Tensor, right: Tensor, **options: Any) -> Tensor:
        return addmm_(total, left, right, **options) if left.numel() * right.shape[1] < SMALL else total

    def empty(*shape: Any, **options: Any) -> Tensor:
        return torch.empty(*shape, **{name: value for name, value in options.items() if name != "generator"})

    math.mm, math.Tensor.addmm_, math.randn = product, added, empty
    try:
        yield
    finally:
        math.mm, math.Tensor.addmm_, math.randn = mm, addmm_, randn


def launch(module: Any, case: Any) -> None:
    """Call every provider of ours once, forward and backward, on new tensors like the inputs, as the checks do."""
    tensors = module.inputs(case, "cpu")
    for name, provider in module.providers().items():
        if name.startswith("triton"):
            for backward in (False, True):
                fresh = {key: torch.empty_like(t) if t.is_floating_point() else t.clone() for key, t in tensors.items()}
                with contextlib.suppress(Unsupported):
                    provider.prepare(case, fresh, backward)()


# --- requests --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def recorded() -> Iterator[list[Request]]:
    """Record what Triton would compile, in place of compiling it.

    Of each: the place of the function, Triton's description ("data"), and "launched", as ``check_coverage`` has it.
    """
    requests: list[Request] = []

    def note(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:  # noqa: A002 - triton's name
        function, data = fn.jit_function, compile["specialization_data"]
        place = f"{function.fn.__module__}:{function.fn.__qualname__}"
        requests.append({"function": place, "data": data, "launched": launch_of(function, compile)})
        return True  # do not compile

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        yield requests
    finally:
        knobs.runtime.jit_cache_hook = before


def requests_of(operation: str, cases: Iterable[Any]) -> list[Request]:
    """Return each distinct request of the launches of cases of an operation, with the first such case's label.

    Needs a process with a stand-in driver; see ``prepare``.
    """
    module, distinct = import_module(f"scalekernels.{operation}"), dict[tuple[str, str], Request]()
    for case in cases:
        with recorded() as requests, unwritten():
            launch(module, case)
        for request in requests:
            key = (request["function"], request["data"])
            distinct.setdefault(key, request | {"operation": operation, "case": case.label})
    return list(distinct.values())


def session_cases(operation: str, few: bool = False) -> Iterator[Any]:
    """Yield the cases of an operation that the check on a GPU runs; ``few``: only the small ones, as on a CPU."""
    module = import_module(f"scalekernels.{operation}")
    yield from check_case.cases(module, list(check_case.DTYPES), larger=not few)
    if not few and operation != "optimizer":  # its sizes decide no code, and filling 124M parameters takes seconds
        yield from module.GOALS


def prepare(operations: Sequence[str], capability: int, multiprocessors: int = MULTIPROCESSORS) -> None:
    """Turn this process into one that launches on a device that is not there. There is no way back."""
    for operation in operations:
        import_module(f"scalekernels.{operation}")
    driver.set_active(Nowhere(capability))
    pretend_to_have_a_gpu(rows_of(capability), multiprocessors)


# --- Triton's cache --------------------------------------------------------------------------------------------------


def function_of(request: Mapping[str, Any]) -> Any:
    """Return the jit function of a request."""
    module, _, name = request["function"].partition(":")
    return getattr(import_module(module), name)


def cache_folder(source: Any, target: GPUTarget, options: Mapping[str, Any]) -> str:
    """Return the name of the cache entry that ``triton.compile`` writes for these arguments, computed as it does."""
    backend = make_backend(target)
    parsed = backend.parse_options(dict(options))
    key = get_cache_key(source, backend, parsed, env_vars=get_cache_invalidating_env_vars())
    return hashlib.sha256(key.encode()).hexdigest()


def with_compiler(request: Mapping[str, Any], compiler: Callable[..., Any]) -> None:
    """Have Triton restore a request and call ``compiler`` with the arguments that it has for ``triton.compile``."""
    function = settled(function_of(request))
    function.device_caches[driver.active.get_current_device()]  # makes what the next line replaces
    before, function.compile = function.compile, compiler
    try:
        function.preload(request["data"])
    finally:
        function.compile = before


def is_compiled(request: Mapping[str, Any]) -> bool:
    """Return whether Triton's cache has the result of a request."""
    present: list[bool] = []

    def look(source: Any, target: GPUTarget, options: Mapping[str, Any], **_: Any) -> None:
        files = get_cache_manager(cache_folder(source, target, options)).get_group(f"{source.name[:150]}.json") or {}
        present.append(any(name.endswith(".cubin") and Path(path).exists() for name, path in files.items()))

    with_compiler(request, look)
    return present[0]


def compile_request(request: Mapping[str, Any], capability: int) -> None:
    """Compile a request to Triton's cache, with the ptxas that Triton would use. Raises what the compiler raises."""
    driver.set_active(Nowhere(capability))
    settled(function_of(request)).preload(request["data"])


def found(operations: Sequence[str], capability: int, few: int = 0) -> dict[str, Any]:
    """Return the requests of the operations that Triton's cache does not hold, and what there is besides.

    ``few``: the largest number for each operation, from its small cases, as a rehearsal on a CPU. "unreached" are the
    configurations shipped for this architecture that no case launches.
    """
    every: list[Request] = []
    unreached: list[str] = []
    for operation in operations:
        requests = requests_of(operation, session_cases(operation, bool(few)))
        every += requests[: few or None]
        shipped = import_module(f"scalekernels.{operation}").compilations(rows_of(capability))
        unreached += [
            f"{each.kernel} {each.label}"
            for each in shipped
            if not each.candidate and not any(is_launch_of(request["launched"], each) for request in requests)
        ]
    missing = [request for request in every if not is_compiled(request)]
    return {"distinct": len(every), "missing": missing, "unreached": [] if few else unreached}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the requests that Triton's cache does not hold, as JSON, and print how many there are."""
    parser = argparse.ArgumentParser(description="find what the launches of the cases compile, without a GPU")
    parser.add_argument("operations", nargs="?", default=",".join(OPERATIONS), help="joined by commas")
    parser.add_argument("--arch", type=int, default=ARCHITECTURE, help="compute capability times ten")
    parser.add_argument("--processors", type=int, default=MULTIPROCESSORS, help="number of multiprocessors")
    parser.add_argument("--few", type=int, default=0, help="requests per operation, of small cases (0: all, of all)")
    parser.add_argument("--output", type=Path, required=True, help="file for the requests")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begun, operations = time.monotonic(), options.operations.split(",")
    prepare(operations, options.arch, options.processors)
    listed = found(operations, options.arch, options.few)
    options.output.write_text(json.dumps(listed), encoding="utf-8")
    print(f"{listed['distinct']} kernels, {len(listed['missing'])} not compiled before, "
          f"found in {time.monotonic() - begun:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
