"""Have triton use another ptxas than the one that it bundles, as ``make kernels`` does for Gluon kernels for Hopper.

What these kernels require of the machine code (which registers a product in flight reads, what overlaps it) is the
assembler's doing: releases of ptxas before 13.3 have a known fault there, so that a session on a GPU may use another.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scalekernels.device import assembler

VARIABLE = "TRITON_PTXAS_PATH"  # triton's, for architectures before sm_100


@contextlib.contextmanager
def using(path: Path | None) -> Iterator[None]:
    """Have triton, in this process and those it starts, use the ptxas at ``path``, or the bundled one if None."""
    before = os.environ.pop(VARIABLE, None)
    if path is not None:
        os.environ[VARIABLE] = str(path)
    assembler.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        assembler.cache_clear()


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the path of a ptxas, which may be packed by xz. Raises ``ValueError`` if it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        program = path.resolve()
        if path.suffix == ".xz":
            program = Path(folder) / "ptxas"
            program.write_bytes(lzma.decompress(path.read_bytes()))
            program.chmod(0o755)
        try:
            version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"{path} is no ptxas that runs here: {error}") from error
        if not re.search(r"release \d+\.\d+, V\d+\.\d+\.\d+", version):  # triton would use its own instead
            raise ValueError(f"{path} is no ptxas: --version prints {version[:100]!r}")
        yield program
