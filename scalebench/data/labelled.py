"""Text whose documents have a class each, for classification: by language, by package, or by the folder of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Tokens, middles, spread_windows, uniform_windows
from scalebench.data.headers import open_headers
from scalebench.data.text import Text, open_stdlib, read_documents, split, stdlib_files
from scalebench.store import expanded

# Packages that every Python from 3.11 on has, with enough files for some of each to be held out.
PACKAGES = ("asyncio", "email", "encodings", "multiprocessing")
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledText(Text):
    """Documents in classes: ``labels`` has the class of each, 0 … K - 1, and ``names`` that of each class.

    As plain text it is all of its documents. As labelled text it is pieces of one document each, every class equally
    often, so that the share of the largest class is 1 / K.
    """

    labels: tuple[int, ...]
    names: tuple[str, ...]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the documents and their classes."""
        about = f"{Text(self.documents).sha256} {self.names} {self.labels}"
        return hashlib.sha256(about.encode()).hexdigest()

    def draw_labelled(
        self, rng: np.random.Generator, validation_fraction: float, count: int, span: int
    ) -> tuple[Tokens, Labels]:
        """Draw training windows (count, span) and their classes (count,), both uniform: a class, then a start."""
        labels = rng.integers(len(self.names), size=count)
        windows = np.empty((count, span), dtype=np.uint8)
        for label, (training, _) in enumerate(class_sides(self, validation_fraction)):
            rows = np.flatnonzero(labels == label)
            windows[rows] = uniform_windows(rng, training, len(rows), span)
        return windows, labels

    def validation_labelled(self, validation_fraction: float, samples: int, span: int) -> tuple[Tokens, Labels, Labels]:
        """Return held-out windows (w, span), their classes and documents, both (w,); w is ``samples`` at most.

        Every class has as many, unless its documents are too short for them. Raises ``ValueError`` if a class has no
        held-out document as long as a window.
        """
        each = max(1, samples // len(self.names))
        parts, documents = [], 0
        for label, (_, held_out) in enumerate(class_sides(self, validation_fraction)):
            windows, clusters = spread_windows(held_out, 2 * each, span)  # spreading leaves up to half of them out
            chosen = middles(len(windows), min(each, len(windows)))
            parts.append((windows[chosen], np.full(len(chosen), label), clusters[chosen] + documents))
            documents += len(held_out)
        windows, labels, clusters = map(np.concatenate, zip(*parts, strict=True))
        return windows, labels, clusters


@lru_cache(maxsize=4)
def class_sides(text: LabelledText, validation_fraction: float) -> list[tuple[Tokens, list[Tokens]]]:
    """Return each class's training bytes (n,) and held-out documents. Raises ``ValueError`` if one of them is empty."""
    sides: list[tuple[Tokens, list[Tokens]]] = []
    for label, name in enumerate(text.names):
        pairs = zip(text.documents, text.labels, strict=True)
        part = Text(tuple(document for document, of in pairs if of == label))
        try:
            training, held_out = split(part, validation_fraction)
        except ValueError as error:
            raise ValueError(f"class {name!r}: {error}") from error
        sides.append((training, [*held_out]))
    return sides


def labelled(parts: Mapping[str, Text]) -> LabelledText:
    """Join the texts of the classes; a document that several of them have belongs to none."""
    label_of: dict[bytes, int] = {}
    for label, text in enumerate(parts.values()):
        label_of |= {document: -1 if document in label_of else label for document in text.documents}
    pairs = [(document, label) for document, label in label_of.items() if label >= 0]
    documents, labels = zip(*pairs, strict=True)
    return LabelledText(documents=documents, labels=labels, names=tuple(parts))


def open_languages(_argument: str = "") -> LabelledText:
    """Open Python (the source ``stdlib``) and C++ (the source ``cpp``), labelled by language."""
    return labelled({"python": open_stdlib(), "cpp": open_headers()})


def open_packages(_argument: str = "") -> LabelledText:
    """Open four packages of the standard library, labelled by the package that a file belongs to."""
    root, files = stdlib_files()
    parts = {name: [file for file in files if file.is_relative_to(root / name)] for name in PACKAGES}
    return labelled({name: read_documents(paths, f"packages ({root / name})") for name, paths in parts.items()})


def open_folders(path: str) -> LabelledText:
    """Open a folder whose sub-folders are the classes, each with its files as documents.

    Raises ``ValueError`` naming the path unless it has at least two sub-folders with text.
    """
    root = expanded(path)
    folders = sorted(folder for folder in root.glob("*") if folder.is_dir() and not folder.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"folders path {path!r}: {len(folders)} sub-folders; labels need two or more, one per class")
    parts = {}
    for folder in folders:
        files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
        parts[folder.name] = read_documents(files, f"folders path {str(folder)!r}")
    return labelled(parts)
