"""Families that write: experts with a cache as without one, masked places filled by what the model finds likeliest."""

from __future__ import annotations

import pytest
import torch

from scalebench.data import open_source
from scalebench.errors import InputError
from scalebench.families import bert, moe
from scalebench.workloads.completion import WRITERS, Request, filled
from scalebench.workloads.completion_options import ABILITIES
from scalebench.workloads.decoding import Sampling, chooser, generate

DATA = open_source("stdlib")


def test_every_capability_that_generates_text_has_a_writer() -> None:
    assert tuple(WRITERS) == ABILITIES


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_experts_write_the_same_with_the_cache_as_without(positions: str) -> None:
    torch.manual_seed(0)
    model = moe.build(moe.config_for(2e4, vocab_size=256, context=64, positions=positions), "sdpa").eval()
    prompts = torch.randint(256, (3, 7))
    with torch.inference_mode():
        cached, plain = generate(model, prompts, 20, chooser(Sampling())), prompts
        for _ in range(20):
            plain = torch.cat((plain, model(plain)[:, -1].argmax(-1)[:, None]), 1)
    assert torch.equal(cached, plain)


@pytest.fixture(scope="module")
def config() -> bert.Config:
    return bert.config_for(5e4, **bert.defaults(DATA, 64))


@pytest.fixture(scope="module")
def model(config: bert.Config) -> torch.nn.Module:
    torch.manual_seed(0)
    return bert.build(config, "sdpa").eval()


def test_every_mask_is_filled_by_the_likeliest_byte_and_the_rest_stays(model, config) -> None:
    prompt = "def f[MASK]x):\n    ret[MASK]rn x"
    written = filled(model, DATA, config, Request(prompt)).text
    tokens = [256, *(258 if c == "\x00" else ord(c) for c in prompt.replace("[MASK]", "\x00")), 257]
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), torch.zeros(1, len(tokens), dtype=torch.int64))[0][0]
    best = logits[:, :256].argmax(-1).tolist()
    assert written == DATA.decode([best[i] if t == 258 else t for i, t in enumerate(tokens)][1:-1])


def test_drawing_depends_on_the_seed_alone(model, config) -> None:
    def drawn(seed: int) -> str:
        return filled(model, DATA, config, Request("a[MASK][MASK][MASK][MASK]b", temperature=1.0, seed=seed)).text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request("nothing to fill"), r"no \[MASK\] to fill"),
        (Request("[MASK]" + "x" * 63), "64 tokens, and the model's context holds 62"),
        (Request("[MASK]", tokens=3), "--tokens"),
        (Request("[MASK]", beams=2), "--beams"),
    ],
)
def test_prompts_that_cannot_be_filled_are_refused(model, config, request_: Request, word: str) -> None:
    with pytest.raises(InputError, match=word):
        filled(model, DATA, config, request_)
