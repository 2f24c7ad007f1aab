"""Data: real text split cleanly, batches decided by seed and step, teachers whose floor is what they say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scalebench.data import DataError, open_source
from scalebench.data.corpus import middles, spread_windows
from scalebench.data.synthetic import Teacher, generator, teacher_weights
from scalebench.data.text import Text, split, validation_windows
from scalebench.families import linear
from scalebench.study import DataSpec
from scalebench.tasks import NextToken, Regression

STDLIB = open_source("stdlib")


def next_token(**changes: object) -> NextToken:
    values = {"sequence_length": 32, "batch_size": 4, "seed": 0, "validation_fraction": 0.2, "validation_samples": 200}
    return NextToken(STDLIB, **(values | changes))


def test_stdlib_is_real_python_source() -> None:
    assert isinstance(STDLIB, Text)
    assert sum(map(len, STDLIB.documents)) > 5e6
    assert any(b"class JSONDecoder" in document for document in STDLIB.documents)
    assert open_source("stdlib").sha256 == STDLIB.sha256


def test_no_document_is_on_both_sides_and_none_is_lost() -> None:
    training, held_out = split(STDLIB, 0.2)
    text = training.tobytes()
    for document in held_out[::7]:
        assert document.size < 200 or document.tobytes() not in text
    assert training.size + sum(d.size for d in held_out) == sum(len(d) + 1 for d in STDLIB.documents)
    share = len(held_out) / len(STDLIB.documents)
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / len(STDLIB.documents))


def test_the_split_follows_content_not_names_or_order() -> None:
    documents = tuple(f"document {i}\n".encode() for i in range(200))
    held_out = split(Text(documents), 0.3)[1]
    two = split(Text(tuple(reversed(documents))), 0.3)[1]
    assert {d.tobytes() for d in held_out} == {d.tobytes() for d in two}


def test_batches_depend_on_seed_and_step_alone() -> None:
    task = next_token()
    first = task.batch(5)
    task.batch(9)
    again = next_token().batch(5)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], task.batch(6)[0])
    assert not torch.equal(first[0], next_token(seed=1).batch(5)[0])


def test_targets_are_the_inputs_one_byte_on() -> None:
    inputs, targets = next_token().batch(0)
    assert inputs.shape == targets.shape == (4, 32)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.dtype == torch.int64


def test_few_windows_of_a_document_are_middles_of_equal_shares_not_its_ends() -> None:
    parts = [np.arange(103, dtype=np.uint8), np.arange(7, dtype=np.uint8), np.arange(3, dtype=np.uint8)]
    windows, clusters = spread_windows(parts, 4, 4)
    assert windows[:, 0].tolist() == [25, 75, 1, 3]  # of 100 and of 4 places; the last part is too short
    assert clusters.tolist() == [0, 0, 1, 1]
    assert middles(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert middles(1, 1).tolist() == [0]


def test_validation_windows_are_held_out_and_spread_over_documents() -> None:
    windows, clusters = validation_windows(STDLIB, 0.2, 300, 65)
    held_out = [d for d in split(STDLIB, 0.2)[1] if d.size >= 65]
    assert len(set(clusters)) == min(300, len(held_out))
    assert np.bincount(clusters).max() <= max(1, 300 // len(held_out))
    for window, cluster in list(zip(windows, clusters, strict=True))[::23]:
        assert window.tobytes() in held_out[cluster].tobytes()


def test_validation_does_not_depend_on_the_seed() -> None:
    first, second = (list(next_token(seed=seed).validation()) for seed in (0, 1))
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, second, strict=True))


def test_the_loss_of_a_uniform_guess_is_log_of_the_vocabulary() -> None:
    task = next_token()

    class Uniform(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*tokens.shape, 256)

    losses = task.losses(Uniform(), task.batch(0))
    torch.testing.assert_close(losses, torch.full((4,), math.log(256)))


def test_epochs_count_how_often_the_text_was_seen() -> None:
    assert next_token().samples_per_epoch == split(STDLIB, 0.2)[0].size / 32


def test_a_file_and_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i} of a long story\n" for i in range(4000)))
    (tmp_path / "b.txt").write_text("another\n" * 5000)
    single = open_source(f"text:{tmp_path / 'a.txt'}")
    assert isinstance(single, Text)
    assert b"".join(single.documents) == (tmp_path / "a.txt").read_bytes()
    assert all(document.endswith(b"\n") for document in single.documents)
    assert 0.8 * 8192 < len(single.documents[0]) < 1.2 * 8192
    folder = open_source(f"text:{tmp_path}")
    assert isinstance(folder, Text)
    assert len(folder.documents) == 2


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("stdlob", "did you mean 'stdlib'"),
        ("text", "expected text:PATH"),
        ("text:", "expected text:PATH"),
        ("stdlib:x", "expected stdlib"),
        ("text:/nowhere/at/all", "'/nowhere/at/all' does not exist"),
    ],
)
def test_sources_that_are_none_are_refused_by_name(source: str, word: str) -> None:
    with pytest.raises(DataError, match=word):
        open_source(source)


def test_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    for path in (tmp_path / "empty.txt", tmp_path):
        with pytest.raises(DataError, match=r"is empty|: no text"):
            open_source(f"text:{path}")


def test_text_too_short_for_a_window_or_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exceeds the"):
        next_token(sequence_length=50_000_000).check()
    with pytest.raises(ValueError, match="leave no validation text"):
        split(Text((b"one document",)), 1e-9)
    with pytest.raises(ValueError, match="no validation document has"):
        validation_windows(Text((b"one", b"two", b"six", b"ten")), 0.5, 4, 50)


def regression(kind: str, inputs: int, noise: float = 0.5) -> Regression:
    sizes = {"inputs": inputs, "outputs": 1, "batch_size": 20_000, "validation_samples": 256}
    return Regression(teacher=Teacher(), kind=kind, noise_std=noise, seed=3, **sizes)


def test_the_perfect_model_of_a_teacher_reaches_its_floor() -> None:
    task = regression("mlp", 8)
    x, y = task.batch(0)

    class Oracle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            signal = x.numpy()
            weights = teacher_weights("mlp", 8, 1)
            for weight in weights[:-1]:
                signal = np.tanh(signal @ weight)
            return torch.from_numpy(signal @ weights[-1])

    losses = task.losses(Oracle(), (x, y))
    assert task.floor_nats == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25))
    assert float(losses.mean()) == pytest.approx(task.floor_nats, abs=4 * float(losses.std()) / math.sqrt(20_000))
    assert float(y.var()) == pytest.approx(1 + 0.25, rel=0.05)


@pytest.mark.parametrize("inputs", [1, 10, 100])
def test_the_best_linear_model_is_short_of_the_floor_by_the_zeta_tail(inputs: int) -> None:
    task = regression("linear", inputs, noise=0.3)
    x, y = (tensor.double().numpy() for tensor in task.batch(0))
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    unseen = math.pi**2 / 6 - sum(1 / k**2 for k in range(1, inputs + 1))
    assert Teacher().unseen_variance(inputs) == pytest.approx(unseen, rel=1e-9)
    assert residual.var() == pytest.approx(0.09 + unseen, rel=5 * math.sqrt(2 / 20_000) + inputs / 20_000)


def test_a_wider_linear_model_sees_the_same_features_and_more() -> None:
    narrow, wide = teacher_weights("linear", 5, 1)[0], teacher_weights("linear", 50, 1)[0]
    np.testing.assert_array_equal(wide[:5], narrow)


def test_random_streams_do_not_meet() -> None:
    draws = {
        tuple(generator(*key).integers(2**60, size=2)) for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0), (0, 1))
    }
    assert len(draws) == 5


def test_linear_family_asks_the_linear_teacher() -> None:
    config = linear.config_for(100)
    spec = DataSpec(source="teacher", validation_fraction=0.2, validation_samples=10, noise_std=0.5, sha256="")
    assert linear.task(config, Teacher(), spec, _Train()).kind == "linear"


class _Train:
    batch_size, seed = 4, 0
