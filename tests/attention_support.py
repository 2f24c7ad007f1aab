"""What the tests of attention under the interpreter share: small tiles, the acceptance rule, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from kernel_support import inaccuracy, poisoned
from scalekernels.attention import (
    Case,
    attention,
    inputs,
    providers,
    results,
    terms,
)
from scalekernels.attention import tiles as attention_tiles
from scalekernels.attention.tiles import Tile
from torch import Tensor

PROVIDERS = providers()


@contextmanager
def tiles_of(block_m: int, block_n: int) -> Iterator[None]:
    """Launch with tiles so small that short sequences have many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_tiles, "tile_for", lambda kind, row: Tile(block_m, block_n, 1, 1))
        yield


@cache
def expected(case: Case, backward: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """What eager attention returns on a case, what is exact, and the terms of the acceptance rule."""
    tensors = inputs(case)
    theirs = PROVIDERS["eager"].prepare(case, tensors, backward)()
    return theirs, results(case, tensors, backward), terms(case, tensors, backward)


def failure(case: Case, provider: str, backward: bool) -> str | None:
    """Why a provider fails the acceptance rule on a case; its outputs are poisoned before it writes them."""
    with poisoned():
        ours = PROVIDERS[provider].prepare(case, inputs(case), backward)()
    theirs, exact, bound = expected(case, backward)
    return inaccuracy(ours, theirs, exact, terms=bound)


def gradients(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, **options: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attention(q, k, v, **options), (q, k, v), grad_out)


@pytest.fixture
def small_tiles() -> Iterator[None]:
    with tiles_of(16, 16):
        yield
