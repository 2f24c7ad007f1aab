"""What the compiler made of one shipped configuration: registers, spills, shared memory, matrix instructions, loads.

No GPU is needed: ``triton.compile`` takes an explicit target, and ptxas and cuobjdump come with triton. The figures are
of the very cubin that a launch would load: registers and spills from what ptxas said while making it, the stack from
``cuobjdump --dump-resource-usage`` of the result, instructions from the PTX it was made of.
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

import sass
import triton
from scalekernels.compilation import Compilation
from scalekernels.device import assembler
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

# Shared memory that one block may use, and tensor memory columns (CUDA C++ programming guide, technical specifications
# per compute capability).
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_MEMORY_COLUMNS = 512
OVERLAP_AT_LEAST = 0.9  # the share of exponentials beside a product; all but those of the row corrections, seen: 1.0
LIMITED_ARCH = 90  # the one whose instructions per element are limited: limits come from its rates
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}

_ENTRY = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_STACK = re.compile(r"REG:(\d+) STACK:(\d+)")
_VECTOR_LOAD = re.compile(r"ld\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[busf](\d+)\b")
_ASYNC_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global\s*\[[^\]]*\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)")
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned[^;]*;")
_EVENTS = re.compile(
    r"^(?P<label>\$L\w+):|\bbra(?:\.uni)?\s+(?P<target>\$L\w+);|(?P<mma>wgmma\.mma_async)"
    r"|(?P<commit>wgmma\.commit_group)|wgmma\.wait_group\.sync\.aligned\s+(?P<wait>\d+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class MachineCode:
    """Figures of one compiled configuration.

    Registers are per thread; spills and stack are bytes per thread; shared memory is bytes per block.
    ``matrix`` counts matrix instructions in the PTX by kind ("wgmma SS" with both operands in shared memory, "wgmma RS"
    with the first in registers). ``products`` counts groups of wgmma inside innermost loops, ``drained`` those of them
    that are waited for, with nothing left in flight, before the next is issued. ``losses`` are ptxas' own words.
    ``overlap`` is the share of the exponentials in main loops that run while a product is in flight, ``overwritten``
    the number of instructions that write a register which a product in flight reads (None: not asked for).
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
    loop_instructions: int = 0  # of the longest innermost loop with 16-byte loads; counted where a limit is given


def ptxas_version(arch: int) -> str:
    """Return the version of the assembler that triton uses for an architecture, such as "12.8.93"."""
    return assembler(arch)[1]


def source_of(compilation: Compilation) -> ASTSource:
    """Return what triton compiles.

    Raises ``TypeError`` for an interpreted function, ``ValueError`` where the signature is not the function's.
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
    """Return the launch options that decide the machine code."""
    launch = {"num_warps": compilation.num_warps, "num_stages": compilation.num_stages}
    return launch | dict(compilation.options)


def source_sha256(compilation: Compilation) -> str:
    """Return SHA-256 over all that this configuration's code is made from, except the compiler: 16 hex digits.

    The text of the function and of every jit function and constant of the kernels it reaches, but not its place in the
    file, so that an edit elsewhere leaves it as it is.
    """
    parts = [repr(sorted(jit_sources(compilation.function).items()))]
    parts += [repr(list(compilation.signature.items())), repr(sorted(compilation.constants.items(), key=str))]
    parts += [repr(sorted(compilation.aligned)), repr(sorted(options_of(compilation).items()))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def jit_sources(function: Any) -> dict[str, str]:
    """Return the source text of a jit function, of those it reaches, and the constants they read, by name."""
    found: dict[str, str] = {}
    waiting = [(function.fn.__qualname__, function)]
    while waiting:
        name, value = waiting.pop()
        if name in found:
            continue
        if not hasattr(value, "fn"):
            found[name] = repr(value)
            continue
        found[name] = value.src
        waiting.extend(_reached(value.fn))
    return found


def _reached(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the jit functions and constants that a function names, its own modules' attributes included."""
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
    """Compile afresh for sm_``arch``; return triton's result and what ptxas said while assembling it."""
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
    """Compile one configuration for sm_``arch`` and read off what came out."""
    compiled, log = compile_for(compilation, arch)
    ptx = compiled.asm["ptx"]
    spills = [tuple(map(int, found)) for found in _SPILLS.findall(log)]
    registers, stack = resource_usage(compiled.asm["cubin"])
    said = [int(found) for found in _ENTRY.findall(log)]
    if registers not in said:
        raise RuntimeError(f"{compilation.label}: ptxas said {said} registers and cuobjdump {registers}")
    products, drained = pipelining(ptx)
    return MachineCode(
        registers=registers,
        spill_store_bytes=sum(stores for _, stores, _ in spills),
        spill_load_bytes=sum(loads for _, _, loads in spills),
        stack_bytes=stack,
        shared_bytes=compiled.metadata.shared,
        tensor_memory_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
        matrix=matrix_instructions(ptx),
        plain_products=plain_products(compiled.asm["ttgir"]),
        products=products,
        drained=drained,
        losses=tuple(line.strip() for line in log.splitlines() if "Performance Loss" in line),
        widest_load_bytes=widest_load(ptx),
        stores=len(
            re.findall(r"\b(?:st\.global|atom\.|red\.|cp\.async\.bulk\.tensor\S*\.global\.shared|st\.async)", ptx)
        ),
        **_asynchronous(compiled.asm["cubin"]) if compilation.overlapped else {},
        loop_instructions=loop_instructions(compilation, compiled.asm["cubin"]),
    )


def _asynchronous(cubin: bytes) -> dict[str, Any]:
    listing = sass.disassembled(cubin)
    return {"overlap": sass.overlap(*listing), "overwritten": len(sass.overwritten(*listing))}


def loop_instructions(compilation: Compilation, cubin: bytes) -> int:
    """Return the instructions of the kernel's main loop, or 0 where no limit asks for them."""
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


def matrix_instructions(ptx: str) -> dict[str, int]:
    """Count matrix instructions by kind; wgmma's first operand is a second list of registers (RS) or none (SS)."""
    wgmma = [statement.count("{") for statement in _WGMMA.findall(ptx)]
    counts = {
        "wgmma SS": sum(lists == 1 for lists in wgmma),
        "wgmma RS": sum(lists > 1 for lists in wgmma),
        "mma.sync": ptx.count("mma.sync.aligned"),
        "tcgen05": len(re.findall(r"tcgen05\.mma\b", ptx)),
    }
    return {name: count for name, count in counts.items() if count}


def plain_products(ttgir: str) -> int:
    """Count products that run as scalar multiply-adds: those whose result has no matrix layout."""
    layouts = re.findall(r"= tt\.dot .*->\s*tensor<[^>#]*#(\w+)", ttgir)
    return sum(not layout.startswith("mma") for layout in layouts)


def widest_load(ptx: str) -> int:
    """Return the bytes of the widest load from global memory by one instruction of one thread; TMA counts as 16."""
    loads = [int(count or 1) * int(bits) // 8 for count, bits in _VECTOR_LOAD.findall(ptx)]
    copies = [int(size, 0) for size in _ASYNC_COPY.findall(ptx)]
    bulk = [16] if "cp.async.bulk.tensor" in ptx else []
    return max([*loads, *copies, *bulk], default=0)


def pipelining(ptx: str) -> tuple[int, int]:
    """Return how many groups of wgmma innermost loops issue, and how many are drained before the next is issued."""
    events = list(_EVENTS.finditer(ptx))
    labels = {event["label"]: index for index, event in enumerate(events) if event["label"]}
    jumps = [(labels.get(event["target"], index), index) for index, event in enumerate(events) if event["target"]]
    loops = [(start, stop) for start, stop in jumps if start < stop and any(e["commit"] for e in events[start:stop])]
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    products = drained = 0
    for start, stop in innermost:
        body = [event for event in events[start:stop] if event["mma"] or event["commit"] or event["wait"]]
        for index, event in enumerate(body):
            if event["commit"]:
                products += 1
                after = next((e for e in body[index + 1 :] + body if e["mma"] or e["wait"]), None)
                drained += after is not None and after["wait"] == "0"
    return products, drained


def failures(compilation: Compilation, arch: int, code: MachineCode) -> list[str]:
    """Return every requirement that the machine code does not meet, in words; empty when it meets all."""
    found = []
    if (code.spill_store_bytes or code.spill_load_bytes or code.stack_bytes) and not compilation.spills_allowed:
        spills = f"{code.spill_store_bytes} bytes stored, {code.spill_load_bytes} loaded, stack {code.stack_bytes}"
        found.append(f"spills: {spills}")
    if code.shared_bytes > SHARED_LIMIT_BYTES[arch]:
        found.append(f"shared memory: {code.shared_bytes} of at most {SHARED_LIMIT_BYTES[arch]} bytes")
    if code.tensor_memory_columns > TENSOR_MEMORY_COLUMNS:
        found.append(f"tensor memory: {code.tensor_memory_columns} of {TENSOR_MEMORY_COLUMNS} columns")
    if not code.stores:
        found.append("writes nothing to global memory: the compiler gave up on the kernel")
    if compilation.tensor_core:
        found += _matrix_failures(arch, code)
    found += _listing_failures(compilation, arch, code)
    if code.losses:
        found.append(f"ptxas: {'; '.join(sorted(set(code.losses)))}")
    if compilation.vector_bytes and code.widest_load_bytes < compilation.vector_bytes:
        found.append(f"loads: {code.widest_load_bytes} bytes at most where {compilation.vector_bytes} are asked for")
    return found


def _matrix_failures(arch: int, code: MachineCode) -> Iterator[str]:
    wanted = MATRIX_INSTRUCTION[arch]
    if not any(name.startswith(wanted) for name in code.matrix):
        yield f"no {wanted} instruction (found {dict(code.matrix) or 'none'})"
    if code.plain_products:
        yield f"{code.plain_products} matrix products without tensor cores"
    if code.products and code.drained == code.products:
        yield f"serialised: each of {code.products} wgmma products in loops is waited for before anything else runs"


def _listing_failures(compilation: Compilation, arch: int, code: MachineCode) -> Iterator[str]:
    """Yield what the disassembled machine code misses."""
    if compilation.overlapped and (code.overlap or 0.0) < OVERLAP_AT_LEAST:
        yield f"overlap: {code.overlap:.0%} of the exponentials run while a product is in flight"
    if code.overwritten:
        yield f"{code.overwritten} instructions write registers that a product in flight reads"
    if arch == LIMITED_ARCH and compilation.most_instructions:
        per_element = code.loop_instructions / compilation.elements
        if not 0 < per_element <= compilation.most_instructions:
            allowed = f"{compilation.most_instructions:g} allowed"
            yield f"{per_element:.1f} instructions per element in the main loop; {allowed}"
