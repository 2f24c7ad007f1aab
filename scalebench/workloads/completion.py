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
from scalebench.workloads.decoding import Sampling, beam_search, chooser, generate, stacked

DEFAULT_TOKENS = 100  # or as many as the context leaves room for


@dataclass(frozen=True)
class Request:
    """The options of ``scalebench generate``. ``tokens`` None generates up to 100, or what the context has room for."""

    prompt: str
    tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0

    def sampling(self) -> Sampling:
        """Return how tokens are sampled: by default at temperature 1, and greedily with beam search."""
        default = 0.0 if self.beams > 1 else 1.0
        return Sampling(default if self.temperature is None else self.temperature, self.top_k, self.top_p)

    def check(self) -> None:
        """Raise ``InputError`` with a line for each invalid option."""
        drawn = self.sampling().temperature
        wrong = {
            "--prompt: is empty; give the text to continue": not self.prompt,
            f"--tokens: must be at least 1, given {self.tokens}": self.tokens is not None and self.tokens < 1,
            f"--temperature: must be 0 (greedy) or above, given {drawn}": not 0 <= drawn < float("inf"),
            f"--top-k: must be 0 (all) or above, given {self.top_k}": self.top_k < 0,
            f"--top-p: must be above 0 and at most 1, given {self.top_p}": not 0 < self.top_p <= 1,
            f"--beams: must be at least 1, given {self.beams}": self.beams < 1,
            "--beams: beam search does not sample; leave --temperature out": self.beams > 1 and drawn > 0,
            "--temperature: --top-k and --top-p need sampling; set it above 0": drawn == 0
            and (self.top_k > 0 or self.top_p < 1),
        }
        if any(wrong.values()):
            raise InputError([line for line, holds in wrong.items() if holds])


@torch.inference_mode()
def continued(model: Any, data: Coder, config: Any, request: Request) -> str:
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
        written, _ = beam_search(model, start, new, request.beams)
    else:
        choose = chooser(request.sampling(), torch.Generator().manual_seed(request.seed))
        written = generate(model, start, new, choose)
    return data.decode(written[0].tolist())


MASK = "[MASK]"


@torch.inference_mode()
def filled(model: nn.Module, data: Coder, config: Any, request: Request) -> str:
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
    return data.decode(written.tolist())


WRITERS: Mapping[str, Callable[[nn.Module, Coder, Any, Request], str]] = {"generation": continued, "filling": filled}
