"""Generation: continuing a prompt greedily, by sampling, or by beam search, with a cache.

Legend: B sequences, T tokens of the prompt, V vocabulary, W beams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalebench.families import Decoder

Choose = Callable[[Tensor], Tensor]  # logits (B, V) to the next tokens (B,)


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled: logits over ``temperature``, then the ``top_k`` most likely (0: all), ``top_p``.

    ``top_p`` keeps the smallest set of most likely tokens whose total probability reaches it (Holtzman et al. 2020).
    Temperature 0 is greedy: the most likely token is taken.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution that the next token is sampled from, (B, V) float64: zero for excluded tokens.

    Of equally likely tokens the first in the vocabulary are kept. Raises ``ValueError`` for a temperature of 0.
    """
    if sampling.temperature <= 0:
        raise ValueError(f"temperature = {sampling.temperature}: sampling needs a temperature above 0")
    scores = logits.double()
    scores = (scores - scores.amax(-1, keepdim=True)) / sampling.temperature  # at most 0: no temperature overflows it
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        scores[..., sampling.top_k :] = -torch.inf
    p = scores.softmax(-1)
    if sampling.top_p < 1:  # at 1 nothing may be excluded, whatever the rounding
        before = p.cumsum(-1) - p
        p = p.masked_fill(before >= sampling.top_p, 0)  # keep a token while those before it fall short
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


def chooser(sampling: Sampling, generator: torch.Generator | None = None) -> Choose:
    """Return the function that chooses the next tokens; ``generator`` is on the device of the logits."""
    if sampling.temperature == 0:
        return lambda logits: logits.argmax(-1)
    return lambda logits: torch.multinomial(probabilities(logits, sampling), 1, generator=generator).squeeze(-1)


def stacked(prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return prompts of equal length as (B, T); ``ValueError`` when they are empty or of different lengths.

    Different lengths would need padding and masks, which the cache does not support.
    """
    lengths = sorted({len(prompt) for prompt in prompts})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"prompts of a batch need one length of at least 1, given {lengths}")
    return torch.tensor(prompts)


def generate(
    model: Decoder, prompts: Tensor, new_tokens: int, choose: Choose, first: Callable[[], None] = lambda: None
) -> Tensor:
    """Continue prompts (B, T) by ``new_tokens``: (B, T + new_tokens). ``first()`` is called after the first token."""
    cache = model.cache(prompts.size(0), prompts.size(1) + new_tokens)
    tokens = [choose(model(prompts, cache)[:, -1])]
    first()
    for _ in range(new_tokens - 1):
        tokens.append(choose(model(tokens[-1][:, None], cache)[:, -1]))
    return torch.cat((prompts, torch.stack(tokens, 1)), 1)


def beam_search(
    model: Decoder, prompts: Tensor, new_tokens: int, beams: int, first: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Continue prompts (B, T) by beam search with ``beams`` hypotheses.

    Returns the most likely sequences, (B, T + new_tokens), and the log-probability in nats of the new tokens, (B,).
    There is no end-of-sequence token, so all have the same length and none is favoured for being short. ``first()`` as
    in ``generate``.
    """
    rows, length = prompts.shape
    cache = model.cache(rows, length + new_tokens)
    scores = model(prompts, cache)[:, -1].float().log_softmax(-1)  # (B, V)
    scores, tokens = scores.topk(min(beams, scores.size(-1)))  # (B, W)
    first()
    written, parents = tokens[..., None], torch.zeros_like(tokens)  # (B, W, 1)
    width = 1
    for _ in range(new_tokens - 1):
        cache.select((torch.arange(rows, device=parents.device)[:, None] * width + parents).flatten())
        width = tokens.size(1)
        following = model(tokens.flatten()[:, None], cache)[:, -1].float().log_softmax(-1)  # (B W, V)
        vocabulary = following.size(-1)
        every = (scores[..., None] + following.view(rows, width, vocabulary)).flatten(1)  # (B, W V)
        scores, best = every.topk(min(beams, every.size(1)))
        parents, tokens = best // vocabulary, best % vocabulary
        written = torch.cat(
            (written.gather(1, parents[..., None].expand(-1, -1, written.size(2))), tokens[..., None]), 2
        )
    return torch.cat((prompts, written[:, 0]), 1), scores[:, 0]
