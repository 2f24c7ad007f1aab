"""Data sources: those available on every machine, and files of the user.

``SOURCES`` maps names to sources. A study has ``source = "stdlib"``, or ``source = "text:PATH"`` for a source with an
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

from scalebench.data import (
    glyphs,
    headers,
    hub,
    image_files,
    images,
    labelled,
    markov,
    retrieval,
    shards,
    synthetic,
    text,
    transduction,
)  # fmt: skip
from scalebench.data.byte_pair import BytePairs
from scalebench.data.corpus import Corpus
from scalebench.errors import InputError, unknown


class DataError(InputError):
    """A source that is missing, empty or corrupt; the message names it and what to do."""


class Data(Protocol):
    """An opened source."""

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes, or of the definition of a synthetic source."""
        ...


@runtime_checkable
class Coder(Protocol):
    """Data whose tokens encode text."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; invalid bytes become the replacement character."""
        ...


@dataclass(frozen=True)
class Source:
    """A source: ``open(argument)`` opens it; ``argument`` names what follows the colon, if anything."""

    summary: str
    open: Callable[[str], Data]
    argument: str = ""


SOURCES: Mapping[str, Source] = {
    "stdlib": Source("source code of the Python standard library, as bytes", text.open_stdlib),
    "cpp": Source("C++: headers of the installed PyTorch, as bytes", headers.open_headers),
    "languages": Source("Python and C++ (stdlib and cpp), labelled by language", labelled.open_languages),
    "packages": Source("four packages of the Python standard library, labelled by package", labelled.open_packages),
    "folders": Source("text labelled by sub-folder: a folder with one for each class", labelled.open_folders, "PATH"),
    "text": Source("text in any encoding, as bytes: a file or a folder of files", text.open_path, "PATH"),
    "tokens": Source(
        "token numbers, memory-mapped: 16-bit .bin or .u16, 32-bit .u32, .npy", shards.open_shards, "PATH"
    ),
    "hf": Source(
        "a text column of a Hugging Face dataset, by name or saved on disk (#COLUMN selects one)", hub.open_hub, "NAME"
    ),
    "markov": Source("second-order Markov chain with a known entropy rate", markov.open_markov),
    "teacher": Source("regression on a fixed teacher with Gaussian noise: known floor", synthetic.open_teacher),
    "glyphs": Source("unlimited 32 × 32 images of characters in 47 classes", glyphs.open_glyphs),
    "digits": Source("1,797 handwritten digits of 8 × 8 pixels (scikit-learn)", images.open_digits),
    "cifar10": Source("CIFAR-10, binary version: a folder", image_files.open_cifar10, "PATH"),
    "idx": Source("images in MNIST's IDX format: a folder", image_files.open_idx, "PATH"),
    "retrieval": Source(
        "sets in which a query selects what to sum, with Gaussian noise: known floor", retrieval.open_retrieval
    ),
    "transduction": Source(
        "sequences with an exact answer: reversal, sorting or addition", transduction.open_transduction, "KIND"
    ),
}


def source_names() -> list[str]:
    """Return the names in study-file syntax: stdlib, text:PATH, …"""
    return [f"{name}:{source.argument}" if source.argument else name for name, source in SOURCES.items()]


@lru_cache(maxsize=8)
def open_source(source: str) -> Data:
    """Open ``stdlib``, ``text:PATH``, …; raises ``DataError`` for an unknown, missing or empty source."""
    name, colon, argument = source.partition(":")
    if name not in SOURCES:
        raise DataError(unknown(source, source_names()))
    if bool(SOURCES[name].argument) != bool(colon and argument):
        raise DataError(f"{source!r}: expected {dict(zip(SOURCES, source_names(), strict=True))[name]}")
    try:
        return SOURCES[name].open(argument)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error


@lru_cache(maxsize=8)
def open_data(source: str, vocab_size: int | None, validation_fraction: float) -> Data:
    """Open a source with a vocabulary size: byte pairs of a text, symbols of a Markov chain, token numbers of shards.

    Raises ``DataError`` as ``open_source`` does, and for a vocabulary size that the source cannot have.
    """
    opened = open_source(source)
    if vocab_size is None:
        return opened
    if not isinstance(opened, Corpus):
        raise DataError(f"vocab_size = {vocab_size}: {source!r} has no vocabulary; leave data.vocab_size out")
    try:
        if isinstance(opened, text.Text):
            return BytePairs(opened, vocab_size, validation_fraction)
        return opened.with_vocabulary(vocab_size)
    except ValueError as error:
        raise DataError(str(error)) from error
