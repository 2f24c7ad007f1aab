"""Read disassembled machine code of Hopper (nvdisasm): do exponentials run while a matrix product is in flight?"""

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
_LEAVES = re.compile(r"\b(EXIT|USETMAXREG)\b")


def disassembled(cubin: bytes) -> tuple[list[str], dict[str, int]]:
    """Return the instructions of a cubin and, by label, which of them it stands before."""
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


def main_loops(instructions: Sequence[str], labels: dict[str, int]) -> Iterator[Sequence[str]]:
    """Yield the innermost loops with matrix products and exponentials.

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
        inside = any((first, last) != other and first <= other[0] and other[1] <= last for other in loops)
        body = instructions[first : last + 1]
        if not inside and any("MUFU.EX2" in line for line in body):
            yield body


def overlap(instructions: Sequence[str], labels: dict[str, int]) -> float:
    """Return the share of the exponentials of main loops that stand where a product is in flight; 0 without any."""
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
