"""Masked pairs: masks within binomial bounds, passages that keep to their side, all decided by seed and step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from task_support import STDLIB, T, masked_pairs

from scalebench.data.pairs import boundaries, spread
from scalebench.data.text import Text, split
from scalebench.tasks.masked import IGNORED, assemble, mask

CLS, SEP, MASK = 256, 257, 258


def unmasked(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The tokens before any was masked."""
    inputs, _, labels, _ = batch
    return torch.where(labels == IGNORED, inputs, labels)


def within_four_sigma(count: int, n: int, share: float) -> bool:
    return abs(count - n * share) < 4 * math.sqrt(n * share * (1 - share))


# --- masks -----------------------------------------------------------------------------------------------------------


def test_fifteen_percent_are_masked_and_of_these_80_10_10() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(256, size=(2000, 40))
    tokens, _ = assemble(text[:, :20].astype(np.uint8), text[:, 20:].astype(np.uint8), 256)
    inputs, labels = mask(tokens, 256, rng)
    chosen = labels != IGNORED
    assert (chosen.sum(1) == 6).all()  # 15 % of 40
    n = int(chosen.sum())
    hidden, unchanged = chosen & (inputs == MASK), chosen & (inputs == tokens)
    assert within_four_sigma(int(hidden.sum()), n, 0.8)
    assert within_four_sigma(int(unchanged.sum()), n, 0.1 + 0.1 / 256)  # a random symbol can be the one that was there
    changed = inputs[chosen & ~hidden & ~unchanged]
    assert changed.max() < 256
    assert within_four_sigma(int((changed < 128).sum()), changed.size, 0.5)
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])


def test_every_place_of_the_text_is_masked_equally_often_and_specials_never() -> None:
    tokens, _ = assemble(np.zeros((6000, 9), np.uint8), np.zeros((6000, 11), np.uint8), 256)
    _, labels = mask(tokens, 256, np.random.default_rng(1))
    often = (labels != IGNORED).sum(0)
    assert not often[[0, 10, 22]].any()
    for place in set(range(23)) - {0, 10, 22}:
        assert within_four_sigma(int(often[place]), 6000, 3 / 20)


def test_a_short_row_has_one_masked_token() -> None:
    tokens, _ = assemble(np.zeros((3, 1), np.uint8), np.zeros((3, 1), np.uint8), 256)
    assert ((mask(tokens, 256, np.random.default_rng(0))[1] != IGNORED).sum(1) == 1).all()


def test_masks_and_pairs_are_new_every_step_and_decided_by_seed_and_step() -> None:
    first = masked_pairs().batch(7)
    assert all(torch.equal(a, b) for a, b in zip(first, masked_pairs().batch(7), strict=True))
    for other in (masked_pairs().batch(8), masked_pairs(seed=1).batch(7)):
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[2] == IGNORED, other[2] == IGNORED)
        assert not torch.equal(first[3], other[3])


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_rows_are_two_passages_with_their_segments_and_specials() -> None:
    inputs, segments, labels, follows = batch = masked_pairs().batch(0)
    assert all(part.dtype == torch.int64 for part in batch)
    assert inputs.shape == segments.shape == labels.shape == (256, T)
    assert follows.shape == (256,)
    tokens = unmasked(batch)
    assert (tokens[:, 0] == CLS).all()
    assert (tokens[:, 21] == SEP).all()
    assert (tokens[:, -1] == SEP).all()
    assert (tokens >= 256).sum() == 3 * 256
    assert not segments[:, :22].any()
    assert segments[:, 22:].all()
    assert (tokens[:, 20] == ord("\n")).all()  # the first passage ends with its line


@pytest.mark.slow
def test_half_the_pairs_follow_and_they_alone_stand_together_in_the_text() -> None:
    task = masked_pairs()
    batches = [task.batch(step) for step in range(8)]
    follows = torch.cat([batch[3] for batch in batches])
    assert within_four_sigma(int(follows.sum()), len(follows), 0.5)
    content = split(STDLIB, 0.2)[0].tobytes()
    tokens = torch.cat([unmasked(batch) for batch in batches])[:60]
    for row, follow in zip(tokens, follows[:60], strict=True):
        first, second = bytes(row[1:21].tolist()), bytes(row[22:-1].tolist())
        assert first in content
        assert second in content
        assert (first + second in content) or not follow
    apart = [row for row, follow in zip(tokens, follows[:60], strict=True) if not follow]
    together = sum(bytes([*row[1:21].tolist(), *row[22:-1].tolist()]) in content for row in apart)
    assert together <= 1  # blank lines and the like


def test_passages_keep_to_their_side_and_negatives_to_another_document() -> None:
    documents = tuple(
        b"".join(b"%03d line %02d of this document\n" % (number, line) for line in range(8)) for number in range(60)
    )
    text = Text(documents)
    held_out = {int(document[:3].tobytes()) for document in split(text, 0.3)[1]}
    task = masked_pairs(text, validation_fraction=0.3, sequence_length=61)  # passages of 29 bytes: a line each

    def numbers(batch: tuple[torch.Tensor, ...]) -> list[tuple[int, int, int]]:
        lines = [(bytes(row[1:30].tolist()), bytes(row[31:60].tolist())) for row in unmasked(batch)]
        return [(int(a[:3]), int(b[:3]), int(follow)) for (a, b), follow in zip(lines, batch[3], strict=True)]

    trained = [pair for step in range(4) for pair in numbers(task.batch(step))]
    judged = [pair for batch, _ in task.validation() for pair in numbers(batch)]
    assert {number for first, second, _ in trained for number in (first, second)} == set(range(60)) - held_out
    assert {number for first, second, _ in judged for number in (first, second)} <= held_out
    for first, second, follow in trained + judged:
        assert (first == second) == bool(follow)


def test_validation_is_the_same_for_every_seed_and_spread_over_documents() -> None:
    first, second = (list(masked_pairs(seed=seed).validation()) for seed in (0, 1))
    assert all(
        torch.equal(x, y) for (a, _), (b, _) in zip(first, second, strict=True) for x, y in zip(a, b, strict=True)
    )
    side = masked_pairs().side(held_out=True)
    clusters = np.concatenate([cluster for _, cluster in first])
    np.testing.assert_array_equal(clusters, side.documents[spread(side, 200)])
    assert len(set(clusters)) == min(200, len(set(side.documents)))


def test_a_negative_is_drawn_evenly_from_all_other_documents() -> None:
    side = boundaries(STDLIB, 0.2, 20, 20, held_out=True)
    first = np.full(20_000, side.places.size // 3)
    drawn = side.elsewhere(first, np.random.default_rng(0))
    other = side.documents != side.documents[first[0]]
    assert other[drawn].all()
    half = int(np.flatnonzero(other)[: other.sum() // 2].max())
    assert within_four_sigma(int((drawn <= half).sum()), 20_000, 0.5)
