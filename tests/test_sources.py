"""Sources of data: known entropies, real formats read back, corrupt files named, the two sides kept apart."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from scalebench.data import DataError, open_data, open_source
from scalebench.data.byte_pair import BytePairs
from scalebench.data.markov import Markov, entropy_rate_nats, stationary, transition
from scalebench.data.shards import Shards
from scalebench.data.synthetic import generator
from scalebench.data.text import Text
from scalebench.tasks import NextToken

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache of tokenized texts out of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# --- markov ----------------------------------------------------------------------------------------------------------


def test_the_stationary_law_is_one() -> None:
    law = stationary(16)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(np.einsum("ab,abc->bc", law, transition(16)), law, atol=1e-14)


def test_the_entropy_rate_is_that_of_a_long_sample() -> None:
    """Two million symbols under the true chances: the mean of -ln P is within four standard errors of the rate."""
    drawn = Markov(16).draw(generator(5), 0.2, 2000, 1002).astype(np.int64)
    surprise = -np.log(transition(16)[drawn[:, :-2], drawn[:, 1:-1], drawn[:, 2:]]).mean(axis=1)
    error = surprise.std(ddof=1) / math.sqrt(len(surprise))
    assert abs(surprise.mean() - entropy_rate_nats(16)) < 4 * error
    assert error < 2e-3


def test_counting_transitions_of_a_sample_gives_the_same_entropy() -> None:
    """Without the true chances: the plug-in estimate from counts of a long sample, its bias (cells - contexts)/2n."""
    drawn = Markov(8).draw(generator(6), 0.2, 500, 2002).astype(np.int64)
    triples = drawn[:, :-2] * 64 + drawn[:, 1:-1] * 8 + drawn[:, 2:]
    counts = np.bincount(triples.ravel(), minlength=512).reshape(64, 8)
    n, rows = counts.sum(), counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        plug_in = -np.nansum(counts * np.log(counts / rows)) / n
    assert plug_in + (512 - 64) / (2 * n) == pytest.approx(entropy_rate_nats(8), abs=4e-3)


def test_the_floor_counts_that_the_first_prediction_knows_less() -> None:
    chain = Markov(8)
    pair = stationary(8)
    first = -(pair * np.log(pair / pair.sum(axis=1, keepdims=True))).sum()
    assert chain.floor_nats(1) == pytest.approx(first)
    assert chain.floor_nats(1) > chain.floor_nats(10) > chain.floor_nats(1000) > entropy_rate_nats(8)


def test_a_model_that_knows_the_chain_reaches_its_floor() -> None:
    chain, length = Markov(8), 16
    task = NextToken(chain, length, 512, 0, 0.2, 4000)
    chances = torch.from_numpy(transition(8))
    once = torch.from_numpy(stationary(8) / stationary(8).sum(axis=1, keepdims=True))

    class Oracle(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            later = chances[tokens[:, :-1], tokens[:, 1:]]
            return torch.cat((once[tokens[:, :1]], later), dim=1).log()

    losses = torch.cat([task.losses(Oracle(), batch) for batch, _ in task.validation()]).double()
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - task.floor_nats) < 4 * error
    assert task.samples_per_epoch is None


@pytest.mark.parametrize("symbols", [1, 129])
def test_a_chain_has_few_symbols(symbols: int) -> None:
    with pytest.raises(DataError, match="2 to 128 symbols"):
        open_data("markov", symbols, 0.2)


# --- byte pairs ------------------------------------------------------------------------------------------------------


def story(lines: int = 400) -> Text:
    words = "the model learns a language of few words and many marks: ärger über naïve façades".split()
    pick = np.random.default_rng(1)
    return Text(tuple(" ".join(pick.choice(words, 40)).encode() for _ in range(lines)))


def test_byte_pairs_give_the_text_back_and_shorten_it() -> None:
    pairs = BytePairs(story(), 300, 0.2)
    assert isinstance(pairs, BytePairs)
    text = "naïve models über all: unseen words, \t and numbers 0123"
    tokens = pairs.encode(text)
    assert pairs.decode(tokens) == text
    assert max(tokens) < pairs.vocab_size == 300
    assert len(pairs.encode("the model learns a language")) < 20


def test_byte_pairs_are_the_same_each_time_and_from_the_cache() -> None:
    first, again = BytePairs(story(), 300, 0.2), BytePairs(story(), 300, 0.2)
    drawn = first.draw(generator(3), 0.2, 4, 20)
    np.testing.assert_array_equal(drawn, again.draw(generator(3), 0.2, 4, 20))
    assert first.sha256 == again.sha256
    assert drawn.dtype == np.uint16


@pytest.mark.slow
def test_tokens_stand_for_as_many_bytes_as_the_text_has() -> None:
    text = story()
    pairs = BytePairs(text, 300, 0.2)
    documents = pairs._encoded[1]
    lengths = pairs.token_bytes()
    held_out = [document for document in text.documents if document.decode() in [pairs.decode(d) for d in documents]]
    assert sum(int(lengths[d].sum()) for d in documents) == sum(len(d) + 1 for d in held_out)


def test_held_out_documents_choose_no_merges() -> None:
    """A word that only held-out documents hold stays in bytes."""
    text = story(300)
    held_out = BytePairs(text, 300, 0.2)._sides[1]
    marked = tuple(
        document + b" zyzzyva" * 50 if document + b"\x00" in {d.tobytes() for d in held_out} else document
        for document in text.documents
    )
    both = Text(marked)
    sides = BytePairs(both, 300, 0.2)._sides
    only_held_out = not any(b"zyzzyva" in side.tobytes() for side in sides[0])
    tokenizer = BytePairs(both, 300, 0.2).tokenizer
    pieces = [tokenizer.id_to_token(i) for i in range(300)]
    assert only_held_out == (not any("zyz" in piece for piece in pieces))


def test_bits_per_byte_compare_between_vocabularies() -> None:
    """A uniform guess costs ln V nats a token: bits per byte say so for bytes and for pairs alike."""
    for corpus in (story(), BytePairs(story(), 300, 0.2)):
        task = NextToken(corpus, 16, 4, 0, 0.2, 64)
        judged = [task.judge(Uniform(corpus.vocab_size), batch) for batch, _ in task.validation()]
        whole = {name: np.concatenate([part[name].numpy() for part in judged]) for name in judged[0]}
        nats_per_byte = math.log(corpus.vocab_size) / whole["bytes_per_token"].mean()
        assert task.metrics(whole)["bits_per_byte"] == pytest.approx(nats_per_byte / math.log(2), rel=1e-5)


class Uniform(torch.nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, self.vocab_size)


@pytest.mark.parametrize(("vocab_size", "word"), [(256, "257 to 65,536"), (70_000, "257 to 65,536")])
def test_vocabularies_that_cannot_be_are_refused(vocab_size: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        BytePairs(story(), vocab_size, 0.2)


def test_a_text_too_short_for_its_vocabulary_says_what_it_yields() -> None:
    with pytest.raises(ValueError, match="yields only"):
        BytePairs(story(20), 60_000, 0.2).training_tokens(0.2)


def test_a_source_without_tokens_has_no_vocabulary() -> None:
    with pytest.raises(DataError, match="'teacher' has no vocabulary"):
        open_data("teacher", 300, 0.2)


# --- token shards ----------------------------------------------------------------------------------------------------


def test_shards_are_mapped_and_their_tails_held_out(tmp_path: Path) -> None:
    for name, first in (("a.bin", 0), ("b.bin", 10_000)):
        np.arange(first, first + 10_000, dtype="<u2").tofile(tmp_path / name)
    shards = open_source(f"tokens:{tmp_path}")
    assert isinstance(shards, Shards)
    assert all(isinstance(shard, np.memmap) for shard in shards.shards)
    assert (shards.vocab_size, shards.training_tokens(0.2)) == (20_000, 16_000)
    drawn = shards.draw(generator(1), 0.2, 5000, 8)
    assert (np.diff(drawn.astype(int), axis=1) == 1).all()
    held_out = shards.validation(0.2, 200, 8)[0]
    assert not set(drawn.ravel()) & set(held_out.ravel())
    assert set(held_out.ravel()) <= {*range(8000, 10_000), *range(18_000, 20_000)}
    assert {int(w[0]) // 10_000 for w in drawn} == {0, 1}


def test_every_window_of_a_shard_can_be_drawn_and_evenly(tmp_path: Path) -> None:
    np.arange(30, dtype="<u2").tofile(tmp_path / "a.bin")
    np.arange(100, 110, dtype="<u2").tofile(tmp_path / "b.bin")
    drawn = open_source(f"tokens:{tmp_path}").draw(generator(2), 0.0, 26_000, 5)
    counts = Counter(drawn[:, 0].tolist())
    assert sorted(counts) == [*range(26), *range(100, 106)]
    assert max(counts.values()) < 1.3 * min(counts.values())


@pytest.mark.parametrize(("suffix", "dtype"), [(".u32", "<u4"), (".npy", "uint32"), (".u16", "<u2")])
def test_wide_tokens_and_arrays(tmp_path: Path, suffix: str, dtype: str) -> None:
    tokens = RNG.integers(50_000, size=400).astype(dtype)
    path = tmp_path / f"x{suffix}"
    np.save(path, tokens) if suffix == ".npy" else tokens.tofile(path)
    shards = open_source(f"tokens:{path}")
    np.testing.assert_array_equal(np.concatenate(shards.shards), tokens)


def test_a_header_with_the_token_count_is_understood(tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<u4")
    header[:3] = 20240520, 1, 100
    (tmp_path / "a.bin").write_bytes(header.tobytes() + np.arange(100, dtype="<u2").tobytes())
    assert open_source(f"tokens:{tmp_path}").training_tokens(0.0) == 100
    (tmp_path / "a.bin").write_bytes(header.tobytes() + np.arange(90, dtype="<u2").tobytes())
    open_source.cache_clear()
    with pytest.raises(DataError, match=r"a.bin: .* 100 tokens: truncated"):
        open_source(f"tokens:{tmp_path}")


def test_the_digest_sees_a_change_anywhere_in_a_small_shard(tmp_path: Path) -> None:
    tokens = RNG.integers(100, size=5000).astype("<u2")
    tokens.tofile(tmp_path / "a.bin")
    before = Shards(tmp_path).sha256
    tokens[2711] ^= 1
    tokens.tofile(tmp_path / "a.bin")
    assert Shards(tmp_path).sha256 != before


@pytest.mark.parametrize(
    ("content", "name", "word"),
    [
        (b"\x01\x02\x03", "a.bin", r"a\.bin: 3 bytes is not a multiple of 2 bytes per token"),
        (b"\x01\x02\x03\x04\x05\x06", "a.u32", r"a\.u32: 6 bytes is not a multiple of 4 bytes per token"),
        (b"", "a.bin", r"a\.bin: empty"),
        (b"hello", "a.txt", "no shards found"),
    ],
)
def test_broken_shards_are_named(tmp_path: Path, content: bytes, name: str, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=word):
        open_source(f"tokens:{tmp_path}")


def test_a_vocabulary_too_small_for_the_tokens_is_refused(tmp_path: Path) -> None:
    np.array([1, 2, 900, 4], dtype="<u2").tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match="has token 900"):
        open_data(f"tokens:{tmp_path}", 500, 0.2)
    assert open_data(f"tokens:{tmp_path}", 1000, 0.2).vocab_size == 1000


def test_a_token_the_samples_missed_is_caught_when_drawn(tmp_path: Path) -> None:
    """Pages of a large shard are looked at, not all of it: what hides between them is found in the batch."""
    np.zeros(1000, dtype="<u2").tofile(tmp_path / "a.bin")
    shards = open_data(f"tokens:{tmp_path}", 10, 0.0)
    np.full(1000, 77, dtype="<u2").tofile(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"token 77, outside a vocabulary of 10: set data.vocab_size to at least 78"):
        shards.draw(generator(0), 0.0, 2, 4)


# --- a data set on disk ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_data_set_on_disk_is_read_by_its_text_column(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"title": ["a", "b", "c"], "text": ["first text", "second text", ""], "stars": [1, 2, 3]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    assert set(open_source(f"hf:{tmp_path / 'set'}").documents) == {b"first text", b"second text"}
    assert set(open_source(f"hf:{tmp_path / 'set'}#title").documents) == {b"a", b"b", b"c"}
    with pytest.raises(DataError, match=r"no text column 'stars' \(text columns: title, text\)"):
        open_source(f"hf:{tmp_path / 'set'}#stars")
