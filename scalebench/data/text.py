"""Text as bytes, split into training and validation by a hash of each document, so that copies are on one side."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Corpus, Tokens, Windows, spread_windows, uniform_windows
from scalebench.store import expanded, read_bytes

VOCABULARY = 256
TEXT_BYTES = 8 << 30  # of all documents, which are held in memory
SEPARATOR = b"\x00"  # at the end of each document, so that a model can learn where one begins


@dataclass(frozen=True, eq=False)
class Text(Corpus):
    """Documents as bytes. Compared by identity, so that results computed from it can be cached."""

    documents: tuple[bytes, ...] = field(repr=False)
    vocab_size: int = VOCABULARY

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all documents, each preceded by its length."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(len(document).to_bytes(8, "big") + document)
        return digest.hexdigest()

    def training_tokens(self, validation_fraction: float) -> int:
        """Return the number of training bytes."""
        return split(self, validation_fraction)[0].size

    def draw(self, rng: np.random.Generator, validation_fraction: float, count: int, span: int) -> Tokens:
        """Draw windows whose starts are uniform over the training bytes."""
        return uniform_windows(rng, split(self, validation_fraction)[0], count, span)

    def validation(self, validation_fraction: float, samples: int, span: int) -> Windows:
        """Return held-out windows; a cluster is a document, since windows of one file are correlated."""
        return validation_windows(self, validation_fraction, samples, span)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return ones: each token is a byte."""
        return np.ones(self.vocab_size, dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        """Return the text of bytes; invalid UTF-8 becomes the replacement character."""
        return bytes(tokens).decode(errors="replace")


@lru_cache(maxsize=8)
def split(text: Text, validation_fraction: float) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Return the training bytes (n,) and the validation documents; the hash of a document decides its side.

    Raises ``ValueError`` if a side is empty.
    """
    training: list[bytes] = []
    held_out: list[bytes] = []
    for document in text.documents:
        (held_out if _uniform(document) < validation_fraction else training).append(document)
    if not held_out or not training:
        raise ValueError(
            f"{len(text.documents)} document(s) leave no {'training' if held_out else 'validation'} text at "
            f"validation_fraction = {validation_fraction}; give more files, or another fraction"
        )
    joined = np.frombuffer(SEPARATOR.join(training) + SEPARATOR, dtype=np.uint8)
    return joined, [np.frombuffer(document + SEPARATOR, dtype=np.uint8) for document in held_out]


@lru_cache(maxsize=8)
def validation_windows(text: Text, validation_fraction: float, samples: int, span: int) -> Windows:
    """Return about ``samples`` held-out windows (w, span), spread evenly, and the document (w,) of each."""
    return spread_windows(split(text, validation_fraction)[1], samples, span)


def _uniform(document: bytes) -> float:
    """Map a document to [0, 1) by its hash, independent of file name and machine."""
    return int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64


def read_documents(paths: Iterable[Path], origin: str) -> Text:
    """Return the files as documents, each content once. Raises ``ValueError`` naming ``origin`` if there is no text."""
    files = sorted(paths)
    size = sum(path.stat().st_size for path in files)
    if size > TEXT_BYTES:
        raise ValueError(f"{origin}: {size:,} bytes; at most {TEXT_BYTES:,} are read as text (tokens:PATH maps more)")
    documents = tuple(dict.fromkeys(content for path in files if (content := read_bytes(path, TEXT_BYTES)).strip()))
    if not documents:
        raise ValueError(f"{origin}: no text")
    return Text(documents)


def stdlib_files() -> tuple[Path, list[Path]]:
    """Return the folder of the running Python's standard library and its source files, without its test suites."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return root, files


def open_stdlib(_argument: str = "") -> Text:
    """Open the running Python's standard library source, without its test suites, which vary by distribution."""
    root, files = stdlib_files()
    return read_documents(files, f"stdlib ({root})")


# A single file is divided at line ends into documents of this size, so that some can be held out.
_PART_BYTES = 8192


def _parts(content: bytes) -> list[bytes]:
    lines = content.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    chunks: dict[int, list[bytes]] = {}
    for line, end in zip(lines, ends, strict=True):
        chunks.setdefault(int(end - 1) // _PART_BYTES, []).append(line)
    return [b"".join(chunk) for chunk in chunks.values()]


def open_path(path: str) -> Text:
    """Open a folder (each file is a document) or a file (divided into documents of about 8 kB at line ends).

    Raises ``ValueError`` or ``OSError`` naming the path if it does not exist, cannot be read or has no text.
    """
    root = expanded(path)
    if not root.exists():
        raise ValueError(f"text path {path!r} does not exist")
    if root.is_dir():
        visible = [file for file in root.rglob("*") if file.is_file() and not file.name.startswith(".")]
        return read_documents(visible, f"text path {path!r}")
    content = read_bytes(root, TEXT_BYTES)
    if not content.strip():
        raise ValueError(f"text path {path!r} is empty")
    return Text(tuple(dict.fromkeys(_parts(content))))
