"""Writing on: the cache against no cache, draws against their distribution, beam search against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.special import chdtrc
from torch import Tensor

from scalebench.families import gpt
from scalebench.families.cache import cache_bytes
from scalebench.workloads.decoding import Sampling, beam_search, chooser, generate, probabilities, stacked


class Chain(torch.nn.Module):
    """A decoder whose next token depends on the last one alone, by a table of logits (V, V); it counts its calls."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def cache(self, batch: int, capacity: int) -> ChainCache:
        return ChainCache(batch)

    def forward(self, tokens: Tensor, cache: ChainCache | None = None) -> Tensor:
        assert cache is None or cache.rows == tokens.size(0)
        return self.table[tokens]


class ChainCache:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def select(self, rows: Tensor) -> None:
        self.rows = len(rows)


def small_gpt(implementation: str, vocab_size: int = 61, **fixed: object) -> torch.nn.Module:
    torch.manual_seed(3)
    config = gpt.config_for(8e3, vocab_size=vocab_size, context=40, **fixed)
    return gpt.build(config, implementation).double().eval()


def prompts(rows: int, length: int, vocab_size: int = 61) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))


def without_cache(model: torch.nn.Module, tokens: Tensor, new_tokens: int) -> Tensor:
    for _ in range(new_tokens):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), 1)
    return tokens


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fixed", [{}, {"norm": "layer", "positions": "learned", "bias": True, "tied": False}])
@torch.no_grad()
def test_greedy_with_the_cache_is_greedy_without_it(implementation: str, fixed: dict[str, object]) -> None:
    model, start = small_gpt(implementation, **fixed), prompts(3, 7)
    tokens = generate(model, start, 33, chooser(Sampling()))
    assert tokens.shape == (3, 40)
    assert torch.equal(tokens, without_cache(model, start, 33))
    assert len(set(tokens[0].tolist())) > 3  # a model that repeats one token would show nothing


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("pieces", [[13], [1] * 13, [5, 1, 7], [6, 6, 1]])
@torch.no_grad()
def test_logits_read_piece_by_piece_are_those_read_at_once(implementation: str, pieces: list[int]) -> None:
    model, tokens = small_gpt(implementation), prompts(2, 13)
    cache = model.cache(2, 13)
    parts = [model(part, cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-10)
    assert cache.length == 13


@pytest.mark.parametrize(("dtype", "each"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_cache_takes_what_the_closed_form_says_and_no_more_tokens(dtype: torch.dtype, each: int) -> None:
    model = small_gpt("eager").to(dtype)
    config = model.config
    cache = model.cache(5, 11)
    assert cache.nbytes == 2 * config.depth * config.heads * config.head_dim * 11 * 5 * each
    assert cache.nbytes == cache_bytes(config, 5, 11, each)
    model(prompts(5, 11), cache)
    with pytest.raises(ValueError, match="12 tokens exceed the cache's capacity of 11"):
        model(prompts(5, 1), cache)


def test_prompts_of_several_lengths_are_refused() -> None:
    assert stacked([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"one length of at least 1, given \[1, 2\]"):
        stacked([[1, 2], [3]])
    with pytest.raises(ValueError, match="given"):
        stacked([[]])


# --- drawing ---------------------------------------------------------------------------------------------------------

LOGITS = torch.log(torch.tensor([[0.05, 0.4, 0.15, 0.3, 0.1]]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.05, 0.4, 0.15, 0.3, 0.1]),
        (Sampling(1.0, top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(1.0, top_k=99), [0.05, 0.4, 0.15, 0.3, 0.1]),
        (Sampling(1.0, top_p=0.39), [0, 1, 0, 0, 0]),
        (Sampling(1.0, top_p=0.41), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(1.0, top_p=0.84), [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
        (Sampling(1.0, top_p=0.86), [0, 0.4 / 0.95, 0.15 / 0.95, 0.3 / 0.95, 0.1 / 0.95]),
        (Sampling(1.0, top_k=3, top_p=0.8), [0, 4 / 7, 0, 3 / 7, 0]),  # 0.7 of the 0.85 that the three have
        (Sampling(0.5), [p**2 / 0.285 for p in (0.05, 0.4, 0.15, 0.3, 0.1)]),
    ],
)
def test_what_is_kept_is_exactly_the_set_asked_for(sampling: Sampling, expected: list[float]) -> None:
    chances = probabilities(LOGITS, sampling)
    torch.testing.assert_close(chances, torch.tensor([expected], dtype=torch.float64), rtol=1e-6, atol=0)


def test_of_equally_likely_tokens_the_first_are_kept() -> None:
    chances = probabilities(torch.zeros(1, 6), Sampling(1.0, top_k=4))
    assert chances.tolist() == [[0.25] * 4 + [0.0] * 2]


def test_nothing_is_dropped_where_nothing_is_to_be() -> None:
    logits = torch.cat((torch.zeros(1, 1), torch.full((1, 1000), -40.0)), 1)
    assert (probabilities(logits, Sampling(1.0)) > 0).all()


@pytest.mark.parametrize("temperature", [1e-9, 1e-300, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    chances = probabilities(LOGITS, Sampling(temperature))
    assert torch.equal(chances, torch.nn.functional.one_hot(LOGITS.argmax(-1), LOGITS.size(-1)).double())


def test_a_temperature_of_zero_draws_nothing() -> None:
    with pytest.raises(ValueError, match="needs a temperature above 0"):
        probabilities(LOGITS, Sampling(0.0))
    assert chooser(Sampling())(LOGITS).tolist() == [1]


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=4), Sampling(1.3, top_p=0.9)])
def test_draws_have_the_frequencies_of_their_distribution(sampling: Sampling) -> None:
    draws = 40_000
    choose = chooser(sampling, torch.Generator().manual_seed(11))
    counts = torch.bincount(choose(LOGITS.expand(draws, -1)), minlength=5)
    expected = probabilities(LOGITS, sampling)[0] * draws
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = float(((counts[possible] - expected[possible]) ** 2 / expected[possible]).sum())
    assert chdtrc(int(possible.sum()) - 1, chi_square) > 1e-3


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    model = small_gpt("sdpa")
    draws = [
        generate(model, prompts(2, 5), 20, chooser(Sampling(1.0), torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- beam search -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_brute_force(model: torch.nn.Module, start: Tensor, new_tokens: int, vocabulary: int) -> tuple[Tensor, float]:
    """Score every continuation of one prompt (1, T) and return the likeliest with its log-probability."""
    every = torch.tensor(list(itertools.product(range(vocabulary), repeat=new_tokens)))
    whole = torch.cat((start.expand(len(every), -1), every), 1)
    log_p = model(whole[:, :-1]).log_softmax(-1)[:, start.size(1) - 1 :]
    scores = log_p.gather(2, every[..., None]).squeeze(2).sum(1)
    return whole[scores.argmax()], float(scores.max())


@torch.no_grad()
def test_beam_search_with_every_hypothesis_finds_the_likeliest_sequence() -> None:
    model, start = small_gpt("sdpa", vocab_size=5), prompts(3, 4, 5)
    tokens, scores = beam_search(model, start, 4, beams=5**3)
    for row in range(3):
        best, score = by_brute_force(model, start[row : row + 1], 4, 5)
        assert torch.equal(tokens[row], best)
        assert scores[row].item() == pytest.approx(score, rel=1e-5)


def test_beam_search_leaves_a_greedy_start_that_leads_nowhere() -> None:
    """From 0 the likeliest step leads to 1, which scatters; 2 is less likely and certain to go on to 3."""
    p = torch.tensor([[1e-9, 0.6, 0.4, 1e-9], [0.25] * 4, [1e-9, 1e-9, 1e-9, 1.0], [0.25] * 4])
    model, start = Chain(p.log()), torch.tensor([[0]])
    assert generate(model, start, 2, chooser(Sampling())).tolist()[0][1] == 1
    tokens, score = beam_search(model, start, 2, beams=2)
    assert tokens.tolist() == [[0, 2, 3]]
    assert score.item() == pytest.approx(math.log(0.4), abs=1e-4)


@torch.no_grad()
def test_one_beam_is_greedy_and_more_are_never_less_likely() -> None:
    model, start = small_gpt("eager"), prompts(4, 6)
    beam, score = beam_search(model, start, 12, beams=1)
    assert torch.equal(beam, generate(model, start, 12, chooser(Sampling())))
    last = score
    for beams in (2, 8, 64):
        _, score = beam_search(model, start, 12, beams)
        assert (score >= last - 1e-5).all()
        last = torch.maximum(last, score)
