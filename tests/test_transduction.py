"""Transduction: exact answers, and sides that never meet."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from task_support import transduced

from scalebench.data import DataError, open_source
from scalebench.data.transduction import BEGIN, PLUS, uniform_hash


def test_reversal_and_sorting_are_what_python_says() -> None:
    for kind, right in (("reversal", lambda row: row[::-1]), ("sorting", sorted)):
        source, shifted, target = (part.tolist() for part in transduced(kind).batch(3))
        for sequence, before, answer in zip(source, shifted, target, strict=True):
            assert answer == list(right(sequence))
            assert before == [BEGIN, *answer[:-1]]
            assert set(sequence) <= set(range(10))


@pytest.mark.parametrize("length", [5, 7, 13])
def test_sums_are_right_digit_by_digit(length: int) -> None:
    source, shifted, target = (part.tolist() for part in transduced("addition", length).batch(3))
    digits = length // 2
    for sequence, before, answer in zip(source, shifted, target, strict=True):
        assert sequence[digits] == PLUS
        left, right = (int("".join(map(str, part))) for part in (sequence[:digits], sequence[digits + 1 :]))
        assert len(answer) == digits + 1
        assert int("".join(map(str, answer[::-1]))) == left + right  # units come first
        assert before == [BEGIN, *answer[:-1]]


def test_every_source_lies_on_one_side_and_both_are_drawn_in_full() -> None:
    sources = np.array(list(itertools.product(range(10), repeat=4)))
    held_out = {tuple(row) for row in sources[uniform_hash(sources) < 0.2]}
    assert abs(len(held_out) / 10_000 - 0.2) < 4 * math.sqrt(0.16 / 10_000)
    task = transduced("reversal", 4, batch_size=4000, validation_samples=4000)
    trained = {tuple(row) for step in range(10) for row in task.batch(step)[0].tolist()}
    judged = {tuple(row) for (source, *_), _ in task.validation() for row in source.tolist()}
    assert judged <= held_out
    assert not trained & held_out
    assert len(judged) > 0.8 * len(held_out)
    assert len(trained) > 0.98 * (10_000 - len(held_out))


def test_batches_depend_on_seed_and_step_and_validation_on_neither() -> None:
    first = transduced().batch(5)
    assert all(torch.equal(a, b) for a, b in zip(first, transduced().batch(5), strict=True))
    assert not torch.equal(first[0], transduced().batch(6)[0])
    assert not torch.equal(first[0], transduced(seed=1).batch(5)[0])
    of_seed_0, of_seed_1 = (torch.cat([batch[0] for batch, _ in transduced(seed=seed).validation()]) for seed in (0, 1))
    assert torch.equal(of_seed_0, of_seed_1)
    assert of_seed_0.shape == (100, 9)


def test_unknown_kinds_and_lengths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'reversal'"):
        open_source("transduction:reversel")
    with pytest.raises(DataError, match="transduction:KIND"):
        open_source("transduction")
    for length in (4, 8, 3):
        with pytest.raises(ValueError, match="two numbers of d digits"):
            transduced("addition", length).check()
    with pytest.raises(ValueError, match="at least 4"):
        transduced("sorting", 3).check()
