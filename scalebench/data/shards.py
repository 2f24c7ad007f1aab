"""Pre-tokenized data: memory-mapped shards of token numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Corpus, Tokens, Windows, spread_windows
from scalebench.store import expanded

DTYPES: dict[str, type[np.unsignedinteger[Any]]] = {
    ".bin": np.uint16, ".u16": np.uint16, ".u32": np.uint32, ".npy": np.uint16,
}  # fmt: skip
# Some shards begin with 256 little-endian 32-bit words: this number, a version, the count of 16-bit tokens that follow.
_HEADER_WORDS, _MAGIC = 256, 20240520
_PAGES, _PAGE = 4096, 4096  # pages and bytes per page that the hash reads of a shard, evenly spaced
_VALIDATION_PARTS = 64


@dataclass(frozen=True, eq=False)
class Shards(Corpus):
    """Flat files of token numbers. The end of each shard is held out; windows never cross shards."""

    path: Path
    vocab_size: int = 0
    stated: bool = False

    def __post_init__(self) -> None:
        if not self.stated:
            object.__setattr__(self, "vocab_size", max(int(pages.max()) for _, pages in self._sampled()) + 1)

    @cached_property
    def shards(self) -> list[Tokens]:
        """The memory-mapped shards. Raises ``ValueError`` naming a file that is missing, empty or truncated."""
        files = sorted(self.path.glob("*")) if self.path.is_dir() else [self.path]
        files = [file for file in files if file.suffix in DTYPES and file.is_file()]
        if not files:
            raise ValueError(f"tokens path {str(self.path)!r}: no shards found; expected {', '.join(DTYPES)} files")
        return [_map(file) for file in files]

    def _sampled(self) -> Iterator[tuple[int, Tokens]]:
        """Yield each shard's length and evenly spaced pages: all of a small shard."""
        for shard in self.shards:
            each = _PAGE // shard.itemsize
            if shard.size <= each * _PAGES:
                yield shard.size, np.asarray(shard)
                continue
            starts = np.linspace(0, shard.size - each, _PAGES).astype(np.int64)
            yield shard.size, np.concatenate([shard[start : start + each] for start in starts])

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of each shard's length and evenly spaced pages, at most 16 MiB per shard."""
        digest = hashlib.sha256(str(self.vocab_size).encode())
        for size, pages in self._sampled():
            digest.update(f" {size} {pages.dtype} ".encode() + pages.tobytes())
        return digest.hexdigest()

    def with_vocabulary(self, vocab_size: int) -> Shards:
        """Return the shards with a stated vocabulary size. Raises ``ValueError`` if a sampled token is outside it."""
        if self.vocab_size > vocab_size:
            raise ValueError(f"vocab_size = {vocab_size}: {self.path} has token {self.vocab_size - 1}")
        return replace(self, vocab_size=vocab_size, stated=True)

    def _cut(self, shard: Tokens, validation_fraction: float) -> int:
        return round(shard.size * (1 - validation_fraction))

    def training_tokens(self, validation_fraction: float) -> int:
        """Return the number of tokens before the held-out ends."""
        return sum(self._cut(shard, validation_fraction) for shard in self.shards)

    def draw(self, rng: np.random.Generator, validation_fraction: float, count: int, span: int) -> Tokens:
        """Draw windows; shards are chosen in proportion to their number of windows."""
        room = np.array([max(0, self._cut(shard, validation_fraction) - span + 1) for shard in self.shards])
        if not room.any():
            raise ValueError(f"tokens path {str(self.path)!r}: no shard has {span} training tokens")
        ends = room.cumsum()
        places = rng.integers(ends[-1], size=count)
        which = np.searchsorted(ends, places, side="right")
        starts = places - (ends - room)[which]
        windows = np.stack([self.shards[i][s : s + span] for i, s in zip(which, starts, strict=True)])
        self._check(windows)
        return windows

    def validation(self, validation_fraction: float, samples: int, span: int) -> Windows:
        """Return windows of the held-out ends, divided into parts; a part is a cluster."""
        tails = [shard[self._cut(shard, validation_fraction) :] for shard in self.shards]
        parts = max(1, _VALIDATION_PARTS // len(tails))
        size = max(span, max(tail.size for tail in tails) // parts)
        windows, clusters = spread_windows(
            [tail[start : start + size] for tail in tails for start in range(0, tail.size, size)], samples, span
        )
        self._check(windows)
        return windows, clusters

    def _check(self, windows: NDArray[Any]) -> None:
        if (largest := int(windows.max())) >= self.vocab_size:
            hint = f"set data.vocab_size to at least {largest + 1}"
            raise ValueError(f"{self.path} has token {largest}, outside a vocabulary of {self.vocab_size}: {hint}")


def _map(file: Path) -> Tokens:
    """Map one shard: a .npy of unsigned integers, or raw numbers of the suffix's type with or without a header."""
    if file.suffix == ".npy":
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.ndim != 1 or array.dtype not in (np.uint16, np.uint32):
            raise ValueError(f"{file}: expected one dimension of uint16 or uint32, found {array.dtype}{array.shape}")
        return array
    dtype = np.dtype(DTYPES[file.suffix]).newbyteorder("<")
    size = file.stat().st_size
    if size == 0:
        raise ValueError(f"{file}: empty")
    if size % dtype.itemsize:
        raise ValueError(f"{file}: {size} bytes is not a multiple of {dtype.itemsize} bytes per token: truncated?")
    header = np.fromfile(file, dtype="<u4", count=_HEADER_WORDS)
    if dtype.itemsize == 2 and header.size == _HEADER_WORDS and header[0] == _MAGIC:
        if size != 4 * _HEADER_WORDS + 2 * int(header[2]):
            raise ValueError(f"{file}: {size} bytes, but its header gives {header[2]} tokens: truncated?")
        return np.memmap(file, dtype=dtype, mode="r", offset=4 * _HEADER_WORDS)
    return np.memmap(file, dtype=dtype, mode="r")


def open_shards(path: str) -> Shards:
    """Open a shard or a folder of them: raw little-endian 16-bit (.bin, .u16) or 32-bit (.u32) numbers, or .npy."""
    root = expanded(path)
    if not root.exists():
        raise ValueError(f"tokens path {path!r} does not exist")
    return Shards(root)
