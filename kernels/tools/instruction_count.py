"""How many instructions the loops of a compiled kernel have, from the machine code itself (``nvdisasm``)."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from triton import knobs

_LINE = re.compile(r"^(?P<label>\.L_x_\d+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?P<instruction>[^;]+);", re.MULTILINE)
_TARGET = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
_WIDE_LOAD = re.compile(r"\bLDG\.\S*\b128\b")


def disassembled(cubin: bytes) -> str:
    """Return the machine code of a cubin as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "--print-code", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wide_loop_instructions(sass: str) -> int:
    """Return the instructions of the longest innermost loop that loads 16 bytes at once; 0 where there is none.

    Loops that load less at a time are those for tails and unaligned tensors.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in _LINE.finditer(sass):
        if line["label"]:
            labels[line["label"]] = len(instructions)
        else:
            instructions.append(line["instruction"])
    targets = {at: _TARGET.search(text) for at, text in enumerate(instructions)}
    loops = [(labels[found.group(1)], at + 1) for at, found in targets.items() if found and labels[found.group(1)] < at]
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    wide = [(a, b) for a, b in innermost if any(_WIDE_LOAD.search(text) for text in instructions[a:b])]
    return max((b - a for a, b in wide), default=0)
