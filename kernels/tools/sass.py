"""Analyse disassembled machine code of Hopper (nvdisasm): loops, and what runs beside asynchronous products.

How many instructions has a loop? Do exponentials run while a product is in flight? Are registers that a product in
flight may still read written again, as some releases of ptxas before 13.3 do (triton pull request 11781)? Do loops
with products divide integers or compute 64-bit addresses?
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from triton import knobs

_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_JUMP = re.compile(r"\bBRA\S*\s+.*`\((\.L_\w+)\)")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)")
_LEFT_OPERAND = re.compile(r"HGMMA\S*\s+R\d+,\s+R(\d+),")  # in registers: four of them
_WRITTEN = re.compile(r"^(?:@!?U?P\d+\s+)?(\S+)\s+(?:U?P\w+,\s*)*R(\d+)\b")
_WRITES_NOTHING = ("ST", "RED", "BRA", "ISETP", "FSETP", "BAR", "WARPGROUP", "SYNCS", "UTMA", "R2UR", "HGMMA")
_WIDE_LOAD = re.compile(r"\bLDG\.\S*\b128\b")
_LEAVES = re.compile(r"\b(EXIT|USETMAXREG)\b")
_ENDS = re.compile(r"^(?:EXIT|RET\S* |BRA `)")  # what the next instruction is never reached from
# An integer division is a call, or a reciprocal by way of float32 (I2F.RP, MUFU.RCP, F2I) and products' upper halves
# (IMAD.HI), which alone are left where the reciprocal is computed before the loop, and of a constant divisor.
_DIVISION = re.compile(r"\b(?:I2F|F2I|U?IMAD\.HI|CALL)\b")
# 64-bit products, upper halves of sums and shifts, and every access to global memory, whose address has 64 bits.
_ADDRESS = re.compile(
    r"\b(?:U?IMAD\.(?:WIDE|X)|IADD3\.X|IADD3?\.64|U?LEA\.HI\.X|U?SHF\.L\.U64"
    r"|LD|LDG|LDGSTS|ST|STG|ATOMG?|REDG?|UBLK[A-Z]+)\b"
)


def disassembled(cubin: bytes) -> tuple[list[str], dict[str, int]]:
    """Return the instructions of a cubin, and the index of the instruction after each label."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        return parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parsed(text: str) -> tuple[list[str], dict[str, int]]:
    """Return the instructions and labels of nvdisasm's text."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.search(line):
            instructions.append(instruction[1].strip())
    return instructions, labels


def _product_loops(instructions: Sequence[str], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last instruction of the innermost loops with matrix products.

    Code that spins on a barrier stands apart and jumps back into a loop; what lies between is no loop of its own, and
    is known by the end of a partition in it.
    """
    loops = []
    for last, instruction in enumerate(instructions):
        jump = _JUMP.search(instruction)
        first = labels.get(jump[1], last + 1) if jump else last + 1
        body = instructions[first : last + 1]
        if any("HGMMA" in line for line in body) and not any(_LEAVES.search(line) for line in body):
            loops.append((first, last))
    for first, last in loops:
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in loops):
            yield first, last


def main_loops(instructions: Sequence[str], labels: dict[str, int]) -> Iterator[Sequence[str]]:
    """Yield the innermost loops with matrix products and exponentials."""
    for first, last in _product_loops(instructions, labels):
        body = instructions[first : last + 1]
        if any("MUFU.EX2" in line for line in body):
            yield body


def consumer_loops(instructions: Sequence[str], labels: dict[str, int]) -> Iterator[Sequence[str]]:
    """Yield the innermost loops with matrix products, each with the code apart that it jumps to and that jumps back."""
    for first, last in _product_loops(instructions, labels):
        body = instructions[first : last + 1]
        targets = {labels[jump[1]] for jump in map(_JUMP.search, body) if jump and jump[1] in labels}
        apart = [_up_to_its_end(instructions, target) for target in sorted(targets) if not first <= target <= last]
        back = [part for part in apart if (jump := _JUMP.search(part[-1])) and first <= labels[jump[1]] <= last]
        yield [*body, *(line for part in back for line in part)]


def _up_to_its_end(instructions: Sequence[str], start: int) -> Sequence[str]:
    ends = (at for at in range(start, len(instructions)) if _ENDS.match(instructions[at]))
    return instructions[start : next(ends, len(instructions) - 1) + 1]


def divisions(instructions: Sequence[str], labels: dict[str, int]) -> list[str]:
    """Return the instructions of integer divisions in loops with matrix products."""
    return [line for body in consumer_loops(instructions, labels) for line in body if _DIVISION.search(line)]


def addresses(instructions: Sequence[str], labels: dict[str, int]) -> list[str]:
    """Return the instructions in loops with matrix products that compute a 64-bit address or use one.

    The uniform sums UIADD3.X and UIADD3.64 are none: they form the 64-bit matrix descriptors of wgmma. An address in
    global memory that they might compute is counted where it is used.
    """
    return [line for body in consumer_loops(instructions, labels) for line in body if _ADDRESS.search(line)]


def overlap(instructions: Sequence[str], labels: dict[str, int]) -> float:
    """Return the share of exponentials in main loops that execute while a product is in flight; 0 without any."""
    total = beside = 0
    for body in main_loops(instructions, labels):
        in_flight = 0
        for line in body:
            if "HGMMA" in line:
                in_flight += "gsb0" in line  # the last instruction of a group
            elif wait := _WAIT.search(line):
                in_flight = min(in_flight, int(wait[1], 16))
            elif "MUFU.EX2" in line:
                total += 1
                beside += in_flight > 0
    return beside / total if total else 0.0


def written(instruction: str) -> range:
    """Return the registers that an instruction other than a product writes, according to its text."""
    parts = _WRITTEN.match(instruction)
    if not parts or parts[1].startswith(_WRITES_NOTHING):
        return range(0)
    wide = {".128": 4, ".64": 2, "WIDE": 2, "LDSM": 4}
    count = max((size for mark, size in wide.items() if mark in parts[1]), default=1)
    return range(int(parts[2]), int(parts[2]) + count)


def overwritten(instructions: Sequence[str], labels: dict[str, int]) -> list[str]:
    """Return the instructions that write a register which a product in flight reads.

    Walked in the order of the listing, and around every main loop once more.
    """
    walks = [instructions, *([*body, *body] for body in main_loops(instructions, labels))]
    return [line for walk in walks for line in _overwriting(walk)]


def _overwriting(walk: Sequence[str]) -> Iterator[str]:
    groups: list[set[int]] = [set()]  # registers read by the groups in flight, the last one not closed
    for line in walk:
        if "HGMMA" in line:
            if left := _LEFT_OPERAND.match(line):
                groups[-1].update(range(int(left[1]), int(left[1]) + 4))
            if "gsb0" in line:
                groups.append(set())
        elif wait := _WAIT.search(line):
            groups = groups[-1 - int(wait[1], 16) :]
        elif _LEAVES.search(line):
            groups = [set()]
        elif any(register in group for register in written(line) for group in groups):
            yield line


def wide_loop_instructions(instructions: Sequence[str], labels: dict[str, int]) -> int:
    """Return the number of instructions of the longest innermost loop with 16-byte loads; 0 if there is none.

    Loops that load less at a time are those for tails and unaligned tensors.
    """
    jumps = ((at, _JUMP.search(instruction)) for at, instruction in enumerate(instructions))
    loops = [(labels[jump[1]], at + 1) for at, jump in jumps if jump and labels[jump[1]] < at]
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    wide = [(a, b) for a, b in innermost if any(_WIDE_LOAD.search(text) for text in instructions[a:b])]
    return max((b - a for a, b in wide), default=0)
