"""Classification of text: the class of a piece of a labelled document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Tokens
from scalebench.data.labelled import LabelledText
from scalebench.data.synthetic import generator
from scalebench.tasks.base import TRAINING, VALIDATION_BATCH, Batch, OnText
from scalebench.tasks.masked import SPECIALS
from scalebench.tasks.scores import OneClass


@dataclass(frozen=True)
class TextClasses(OneClass, OnText):
    """Classify pieces of labelled text, every class as often; without knowledge the loss is the log of their number.

    A sample has ``sequence_length`` tokens: a piece of text or, where ``specials`` is True, [CLS] piece [SEP] with a
    segment of zeros. The loss is in nats per sample.
    """

    text: LabelledText
    specials: bool = field(kw_only=True)

    @property
    def samples_per_epoch(self) -> float:
        """Pieces with as many bytes as the training text."""
        return self.text.training_tokens(self.validation_fraction) / self._span

    @property
    def inputs(self) -> int:
        """Tokens, and with special tokens also segments."""
        return 1 + self.specials

    @property
    def _span(self) -> int:
        return self.sequence_length - 2 * self.specials

    def check(self) -> None:
        """Raise ``ValueError`` if a class has no training or held-out text as long as a piece."""
        if self._span < 1:
            raise ValueError(
                f"sequence_length = {self.sequence_length}: [CLS] and [SEP] leave no room; give at least 3"
            )
        self.text.validation_labelled(self.validation_fraction, self.validation_samples, self._span)
        self.batch(0)

    def batch(self, step: int) -> Batch:
        """Return tokens (B, T), with ``specials`` also segments (B, T), and classes (B,), all int64."""
        draw = generator(TRAINING, self.seed, step)
        return self._prepared(*self.text.draw_labelled(draw, self.validation_fraction, self.batch_size, self._span))

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out pieces; the cluster is the document."""
        windows, labels, clusters = self.text.validation_labelled(
            self.validation_fraction, self.validation_samples, self._span
        )
        for start in range(0, len(labels), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            yield self._prepared(windows[rows], labels[rows]), clusters[rows]

    def _prepared(self, windows: Tokens, labels: NDArray[np.int64]) -> Batch:
        import torch

        tokens = torch.from_numpy(windows.astype(np.int64))
        if not self.specials:
            return tokens, torch.from_numpy(labels)
        first, last = (torch.full((len(tokens), 1), self.text.vocab_size + SPECIALS.index(name))
                       for name in ("[CLS]", "[SEP]"))  # fmt: skip
        tokens = torch.cat([first, tokens, last], dim=1)
        return tokens, torch.zeros_like(tokens), torch.from_numpy(labels)
