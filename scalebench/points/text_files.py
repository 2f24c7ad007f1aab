"""Text files as people have them: UTF-8 or UTF-16, with or without a byte-order mark, plain or gzipped."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import BinaryIO, TextIO

import pyarrow as pa

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # as Excel writes "Unicode text"


def is_gzipped(path: Path) -> bool:
    """Whether a file's name has the ending of a compressed file, in upper case too."""
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> BinaryIO:
    """Open a file's bytes, uncompressed."""
    return gzip.open(path) if is_gzipped(path) else path.open("rb")  # type: ignore[return-value]


def open_native(path: Path) -> pa.NativeFile:
    """Open a file for pyarrow, which itself opens no file whose name is not UTF-8."""
    return pa.OSFile(os.fsencode(path))


def open_text(path: Path, errors: str = "strict") -> TextIO:
    """Open a file's text without converting its line ends."""
    encoding = encoding_of(path)
    if is_gzipped(path):
        return gzip.open(path, "rt", encoding=encoding, errors=errors, newline="")
    return path.open(encoding=encoding, errors=errors, newline="")


def encoding_of(path: Path) -> str:
    """Return the encoding that a file's first bytes show: UTF-16 by its mark or by zeros in turn, else UTF-8."""
    with open_bytes(path) as file:
        head = file.read(4)
    if len(head) == 4 and not any(head[1::2]) and all(head[::2]):
        return "utf-16-le"
    if len(head) == 4 and not any(head[::2]) and all(head[1::2]):
        return "utf-16-be"
    return BYTE_ORDER_MARKS.get(head[:2], "utf-8-sig")
