"""Text from a trained model: the continuation of a prompt, or its masked places filled in.

``WRITERS`` maps a capability of a family to the function that generates text with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scalebench.data import Coder
from scalebench.errors import InputError
from scalebench.tasks.masked import SPECIALS
from scalebench.workloads.completion_options import Request
from scalebench.workloads.decoding import Sampling, beam_search, chooser, generate, stacked

__all__ = ["WRITERS", "Request"]

DEFAULT_TOKENS = 100  # or as many as the context leaves room for


@dataclass(frozen=True)
class Completion:
    """The prompt with what the model added to it, and how many tokens it generated."""

    text: str
    tokens: int


@torch.inference_mode()
def continued(model: Any, data: Coder, config: Any, request: Request) -> Completion:
    """Return the prompt and its continuation. Raises ``InputError`` when both do not fit the model's context."""
    prompt = data.encode(request.prompt)
    room = config.context - len(prompt)
    if room < 1:
        line = f"--prompt: {len(prompt)} tokens, and the model's context holds {config.context}: leave room for one"
        raise InputError([line])
    if request.tokens and request.tokens > room:
        raise InputError(
            [f"--tokens: {request.tokens} after a prompt of {len(prompt)} outgrow the context; {room} fit"]
        )
    new, start = request.tokens or min(room, DEFAULT_TOKENS), stacked([prompt])
    if request.beams > 1:
        tokens, _ = beam_search(model, start, new, request.beams)
    else:
        choose = chooser(request.sampling(), torch.Generator().manual_seed(request.seed))
        tokens = generate(model, start, new, choose)
    return Completion(data.decode(tokens[0].tolist()), new)


MASK = "[MASK]"


@torch.inference_mode()
def filled(model: nn.Module, data: Coder, config: Any, request: Request) -> Completion:
    """Return the prompt with each ``[MASK]`` replaced by a token: the most likely one, or sampled at a temperature.

    All masks are filled from one pass over [CLS] prompt [SEP], independently of each other. Raises ``InputError`` for
    a prompt without a mask, or one that does not fit the model's context.
    """
    pieces = [data.encode(piece) for piece in request.prompt.split(MASK)]
    if len(pieces) == 1:
        raise InputError([f"--prompt: has no {MASK} to fill"])
    if request.tokens is not None or request.beams > 1:
        raise InputError([f"--{'tokens' if request.tokens else 'beams'}: {MASK} is filled by one token; leave it out"])
    symbols = data.vocab_size
    start, end, mask = (symbols + SPECIALS.index(name) for name in ("[CLS]", "[SEP]", MASK))
    prompt = pieces[0] + [token for piece in pieces[1:] for token in (mask, *piece)]
    if len(prompt) + 2 > config.context:
        raise InputError([f"--prompt: {len(prompt)} tokens, and the model's context holds {config.context - 2}"])
    tokens = stacked([[start, *prompt, end]])
    logits = model(tokens, torch.zeros_like(tokens))[0][0, 1:-1, :symbols]  # never a special token
    sampling = Sampling(request.temperature or 0.0, request.top_k, request.top_p)
    choose = chooser(sampling, torch.Generator().manual_seed(request.seed))
    places = torch.tensor(prompt) == mask
    written = torch.tensor(prompt)
    written[places] = choose(logits[places])
    return Completion(data.decode(written.tolist()), int(places.sum()))


WRITERS: Mapping[str, Callable[[nn.Module, Coder, Any, Request], Completion]] = {
    "generation": continued,
    "filling": filled,
}
