"""Pairs of passages for BERT: the first ends at a line end, the second follows it or comes from another document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import middles
from scalebench.data.text import Text, split

NEWLINE, END = 10, 0  # the bytes at the end of a line and of a document

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Boundaries:
    """The line starts in one side (training or validation) of a text, where a pair of passages can be split.

    ``places`` (n,) index ``content``; each has ``before`` bytes before it and ``after`` bytes after it in the same
    document, whose number is in ``documents`` (n,). Both ascend.
    """

    content: Bytes
    places: Indices
    documents: Indices
    before: int
    after: int

    def halves(self, first: Indices, second: Indices) -> tuple[Bytes, Bytes]:
        """Return the bytes before boundaries ``first`` and after ``second``, both (B,): (B, before) and (B, after)."""
        left = self.places[first][:, None] + np.arange(-self.before, 0)
        return self.content[left], self.content[self.places[second][:, None] + np.arange(self.after)]

    def elsewhere(self, first: Indices, rng: np.random.Generator) -> Indices:
        """Draw for each boundary (B,) a boundary of another document, uniformly."""
        start = np.searchsorted(self.documents, self.documents[first], side="left")
        stop = np.searchsorted(self.documents, self.documents[first], side="right")
        drawn = rng.integers(self.places.size - (stop - start))
        return np.where(drawn < start, drawn, drawn + stop - start)


@lru_cache(maxsize=8)
def boundaries(text: Text, validation_fraction: float, before: int, after: int, *, held_out: bool) -> Boundaries:
    """Return the boundaries of one side of a text. Raises ``ValueError`` if fewer than two documents have any."""
    training, documents = split(text, validation_fraction)
    content = np.concatenate(documents) if held_out else training
    places = np.flatnonzero(content[:-1] == NEWLINE).astype(np.int64) + 1
    places = places[(places >= before) & (places + after <= content.size)]
    ends = np.flatnonzero(content == END)  # how many lie before a byte is the number of its document
    places = places[np.searchsorted(ends, places - before) == np.searchsorted(ends, places + after)]
    sides = Boundaries(content, places, np.searchsorted(ends, places), before, after)
    if np.unique(sides.documents).size < 2:
        raise ValueError(
            f"fewer than two {'validation' if held_out else 'training'} documents have a line end with {before} bytes "
            f"before it and {after} after it, as pairs of passages need; give more text or a shorter sequence_length"
        )
    return sides


def spread(sides: Boundaries, samples: int) -> Indices:
    """Return about ``samples`` boundaries, evenly over documents and evenly within each."""
    documents, starts, sizes = np.unique(sides.documents, return_index=True, return_counts=True)
    chosen = np.linspace(0, documents.size - 1, min(documents.size, samples)).astype(int)
    each = max(1, samples // chosen.size)
    inside = [np.unique(middles(sizes[d], each)) + starts[d] for d in chosen]
    return np.concatenate(inside).astype(np.int64)
