"""Compile one shipped configuration and extract registers, spills, shared memory, matrix instructions and loads.

No GPU is needed: ``triton.compile`` takes an explicit target, and ptxas and cuobjdump come with triton. The figures are
those of the cubin that a launch would load: registers and spills from ptxas' log, the stack from
``cuobjdump --dump-resource-usage``, instructions from the PTX.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ptx_code
import sass
import triton
from scalekernels.compilation import Compilation
from scalekernels.device import assembler
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

# Limits of one block (CUDA C++ programming guide, technical specifications per compute capability).
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_MEMORY_COLUMNS = 512
OVERLAP_AT_LEAST = 0.9  # share of exponentials beside a product: all but the row corrections; seen: 1.0
LIMITED_ARCH = 90  # the architecture for which instructions per element are limited
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}

_ENTRY = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_STACK = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class MachineCode:
    """Figures of one compiled configuration.

    Registers are per thread; spills and stack are bytes per thread; shared memory is bytes per block.
    ``matrix`` counts matrix instructions in the PTX by kind ("wgmma SS" with both operands in shared memory, "wgmma RS"
    with the first in registers). ``products`` counts groups of wgmma inside innermost loops, ``drained`` those of them
    that are awaited, with nothing left in flight, before the next is issued. ``losses`` are ptxas' warnings.
    ``overlap`` is the share of the exponentials in main loops that run while a product is in flight, ``overwritten``
    the number of instructions that write a register which a product in flight reads. ``divisions`` and ``addresses``
    count the instructions of integer divisions and of 64-bit addresses in loops with products (None: not requested).
    """

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    shared_bytes: int
    tensor_memory_columns: int
    matrix: Mapping[str, int]
    plain_products: int
    products: int
    drained: int
    losses: tuple[str, ...]
    widest_load_bytes: int
    stores: int
    overlap: float | None = None
    overwritten: int | None = None
    divisions: int | None = None
    addresses: int | None = None
    loop_instructions: int = 0  # of the longest innermost loop with 16-byte loads; 0 without a limit


def ptxas_version(arch: int) -> str:
    """Return the version of triton's assembler for an architecture, such as "12.8.93"."""
    return assembler(arch)[1]


def source_of(compilation: Compilation) -> ASTSource:
    """Return the source object for triton's compiler.

    Raises ``TypeError`` for an interpreted function, ``ValueError`` if the signature does not match the function.
    """
    function = compilation.function
    if not hasattr(function, "cache_key"):
        raise TypeError(f"{compilation.label}: {function!r} cannot be compiled (unset TRITON_INTERPRET)")
    names = list(inspect.signature(function.fn).parameters)
    if list(compilation.signature) != names:
        raise ValueError(f"{compilation.label}: signature {list(compilation.signature)} is not the function's {names}")
    constants = {(names.index(name),): value for name, value in compilation.constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in compilation.aligned}
    source = GluonASTSource if function.is_gluon() else ASTSource
    return source(fn=function, signature=dict(compilation.signature), constexprs=constants, attrs=aligned)


def options_of(compilation: Compilation) -> dict[str, Any]:
    """Return the launch options that affect the machine code."""
    launch = {"num_warps": compilation.num_warps, "num_stages": compilation.num_stages}
    return launch | dict(compilation.options)


def source_sha256(compilation: Compilation) -> str:
    """Return 16 hex digits of a SHA-256 over the sources of a configuration's code, without the compiler.

    It covers the text of the function, of every jit function it calls and the constants they read, but not line
    numbers, so that an edit elsewhere in the file does not change it.
    """
    parts = [repr(sorted(jit_sources(compilation.function).items()))]
    parts += [repr(list(compilation.signature.items())), repr(sorted(compilation.constants.items(), key=str))]
    parts += [repr(sorted(compilation.aligned)), repr(sorted(options_of(compilation).items()))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def jit_sources(function: Any) -> dict[str, str]:
    """Return the source text of a jit function, of those it calls, and the constants they read, by name."""
    sources: dict[str, str] = {}
    waiting = [(function.fn.__qualname__, function)]
    while waiting:
        name, value = waiting.pop()
        if name in sources:
            continue
        if not hasattr(value, "fn"):
            sources[name] = repr(value)
            continue
        sources[name] = value.src
        waiting.extend(_referenced(value.fn))
    return sources


def _referenced(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the jit functions and constants that a function refers to, attributes of scalekernels modules included."""
    spaces = [function.__globals__]
    names = function.__code__.co_names
    modules = (spaces[0].get(name) for name in names)
    spaces += [vars(m) for m in modules if isinstance(m, ModuleType) and m.__name__.startswith("scalekernels")]
    for space in spaces:
        for name in names:
            value = space.get(name)
            if hasattr(value, "fn") or isinstance(value, triton.language.constexpr | int | float | str):
                yield name, value


def compile_for(compilation: Compilation, arch: int) -> tuple[Any, str]:
    """Compile for sm_``arch`` without caches; return triton's result and ptxas' log."""
    log = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(knobs.cache.scope())
        stack.enter_context(knobs.compilation.scope())
        stack.enter_context(knobs.nvidia.scope())
        knobs.cache.dir = stack.enter_context(tempfile.TemporaryDirectory())
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        stack.enter_context(contextlib.redirect_stdout(log))
        target = GPUTarget("cuda", arch, 32)
        return triton.compile(source_of(compilation), target=target, options=options_of(compilation)), log.getvalue()


def inspect_code(compilation: Compilation, arch: int) -> MachineCode:
    """Compile one configuration for sm_``arch`` and return its figures."""
    compiled, log = compile_for(compilation, arch)
    ptx = compiled.asm["ptx"]
    spills = [tuple(map(int, sizes)) for sizes in _SPILLS.findall(log)]
    registers, stack = resource_usage(compiled.asm["cubin"])
    logged = [int(count) for count in _ENTRY.findall(log)]
    if registers not in logged:
        raise RuntimeError(f"{compilation.label}: ptxas reports {logged} registers and cuobjdump {registers}")
    products, drained = ptx_code.pipelining(ptx)
    return MachineCode(
        registers=registers,
        spill_store_bytes=sum(stores for _, stores, _ in spills),
        spill_load_bytes=sum(loads for _, _, loads in spills),
        stack_bytes=stack,
        shared_bytes=compiled.metadata.shared,
        tensor_memory_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
        matrix=ptx_code.matrix_instructions(ptx),
        plain_products=ptx_code.plain_products(compiled.asm["ttgir"]),
        products=products,
        drained=drained,
        losses=tuple(line.strip() for line in log.splitlines() if "Performance Loss" in line),
        widest_load_bytes=ptx_code.widest_load(ptx),
        stores=ptx_code.stores(ptx),
        **_loops(compilation, compiled.asm["cubin"]),
        loop_instructions=loop_instructions(compilation, compiled.asm["cubin"]),
    )


def _loops(compilation: Compilation, cubin: bytes) -> dict[str, Any]:
    """Return the requested figures of loops with products."""
    if not (compilation.overlapped or compilation.specialized):
        return {}
    listing = sass.disassembled(cubin)
    values: dict[str, Any] = {"overwritten": len(sass.overwritten(*listing))}
    if compilation.overlapped:
        values["overlap"] = sass.overlap(*listing)
    if compilation.specialized and any(sass.consumer_loops(*listing)):
        values |= {"divisions": len(sass.divisions(*listing)), "addresses": len(sass.addresses(*listing))}
    return values


def loop_instructions(compilation: Compilation, cubin: bytes) -> int:
    """Return the number of instructions of the main loop, or 0 for a configuration without a limit."""
    return sass.wide_loop_instructions(*sass.disassembled(cubin)) if compilation.most_instructions else 0


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Return registers and stack bytes per thread of a cubin's kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = [(int(registers), int(stack)) for registers, stack in _STACK.findall(text)]
    return max(registers for registers, _ in usage), max(stack for _, stack in usage)


def failures(compilation: Compilation, arch: int, code: MachineCode) -> list[str]:
    """Return a message for every requirement that the machine code misses."""
    missed = []
    if (code.spill_store_bytes or code.spill_load_bytes or code.stack_bytes) and not compilation.spills_allowed:
        spills = f"{code.spill_store_bytes} bytes stored, {code.spill_load_bytes} loaded, stack {code.stack_bytes}"
        missed.append(f"spills: {spills}")
    if code.shared_bytes > SHARED_LIMIT_BYTES[arch]:
        missed.append(f"shared memory: {code.shared_bytes} of at most {SHARED_LIMIT_BYTES[arch]} bytes")
    if code.tensor_memory_columns > TENSOR_MEMORY_COLUMNS:
        missed.append(f"tensor memory: {code.tensor_memory_columns} of {TENSOR_MEMORY_COLUMNS} columns")
    if not code.stores:
        missed.append("writes nothing to global memory: the compiler gave up on the kernel")
    if compilation.tensor_core:
        missed += _matrix_failures(arch, code)
    missed += _listing_failures(compilation, arch, code)
    if code.losses:
        missed.append(f"ptxas: {'; '.join(sorted(set(code.losses)))}")
    if compilation.vector_bytes and code.widest_load_bytes < compilation.vector_bytes:
        missed.append(f"loads: {code.widest_load_bytes} bytes at most, {compilation.vector_bytes} required")
    return missed


def _matrix_failures(arch: int, code: MachineCode) -> Iterator[str]:
    instruction = MATRIX_INSTRUCTION[arch]
    if not any(name.startswith(instruction) for name in code.matrix):
        yield f"no {instruction} instruction (found {dict(code.matrix) or 'none'})"
    if code.plain_products:
        yield f"{code.plain_products} matrix products without tensor cores"
    if code.products and code.drained == code.products:
        yield f"serialised: each of {code.products} wgmma products in loops is awaited before anything else runs"


def _listing_failures(compilation: Compilation, arch: int, code: MachineCode) -> Iterator[str]:
    """Yield a message for every requirement that the disassembled machine code misses."""
    if compilation.overlapped and not compilation.overlap_excused and (code.overlap or 0.0) < OVERLAP_AT_LEAST:
        yield f"overlap: {code.overlap:.0%} of the exponentials run while a product is in flight"
    if code.overwritten:
        yield f"{code.overwritten} instructions write registers that a product in flight reads"
    if compilation.specialized and code.divisions is None:
        yield "no loop with products in the disassembled machine code"
    if code.divisions:
        yield f"divisions: {code.divisions} instructions of integer divisions in loops with products"
    if code.addresses:
        yield f"addresses: {code.addresses} instructions for 64-bit addresses in loops with products"
    if arch == LIMITED_ARCH and compilation.most_instructions:
        per_element = code.loop_instructions / compilation.elements
        if not 0 < per_element <= compilation.most_instructions:
            allowed = f"{compilation.most_instructions:g} allowed"
            yield f"{per_element:.1f} instructions per element in the main loop; {allowed}"
