"""Small tasks: masked pairs of the standard library's text, and transduction."""

from __future__ import annotations

from scalebench.data import open_source
from scalebench.data.text import Text
from scalebench.data.transduction import Transduction
from scalebench.tasks import MaskedPairs, Transduce

STDLIB = open_source("stdlib")
T = 43


def masked_pairs(text: Text = STDLIB, **changes: object) -> MaskedPairs:
    values = {"sequence_length": T, "batch_size": 256, "seed": 0, "validation_fraction": 0.2, "validation_samples": 200}
    return MaskedPairs(text, **(values | changes))


def transduced(kind: str = "reversal", length: int = 9, **changes: object) -> Transduce:
    values = {"batch_size": 32, "seed": 0, "validation_fraction": 0.2, "validation_samples": 100}
    return Transduce(Transduction(kind), length, **(values | changes))
