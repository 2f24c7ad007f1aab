"""Broken copies of the attention kernels fail the acceptance rule that the kernels pass."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from attention_support import (
    PROVIDERS,
    failure,
    small_tiles,  # noqa: F401 - a fixture
)
from kernel_support import inaccuracy, install_mutant, poisoned
from scalekernels.attention import (
    Case,
    inputs,
    results,
)
from scalekernels.attention import kernels as attention_kernels

MUTATIONS = {
    "mask one key too narrow": ("(keys <= rows)", "(keys < tl.maximum(rows, 1))"),
    "mask one key too wide": ("(keys <= rows)", "(keys <= rows + 1)"),
    "one key beyond the end": ("seen = keys < key_length", "seen = keys <= key_length"),
    "accumulator not rescaled": ("acc = acc * correction[:, None]", "acc = acc"),
    "weights not rescaled": ("total = total * correction +", "total = total +"),
    "whole tiles one too many": ("(first_row + 1) // BLOCK_N", "(first_row + BLOCK_N) // BLOCK_N"),
    "keys: delta forgotten": ("(dweights - delta[None, :])", "dweights"),
    "keys: scale forgotten": ("(grad_k * scale)", "grad_k"),
    "keys: one query head for the whole group": ("index * group + step // wholes", "index * group"),
    "keys: diagonal tiles not masked": ("tl.cdiv(first_key + BLOCK_N - 1, BLOCK_M)", "first_key // BLOCK_M"),
    "queries: delta forgotten": ("(dweights - delta[:, None])", "dweights"),
    "queries: scale forgotten": ("(grad_q * scale)", "grad_q"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.usefixtures("small_tiles")
def test_a_broken_kernel_fails(monkeypatch, tmp_path, mutation):
    case = Case(1, 2, 1, 50, 45, 16, True, torch.float32)
    install_mutant(monkeypatch, tmp_path, attention_kernels, *MUTATIONS[mutation])
    assert failure(case, "triton", backward=":" in mutation) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("index // query_heads, index % query_heads // group", "index // query_heads, 0"),
        ("index // query_heads, index % query_heads // group", "0, index % query_heads // group"),
        ("[batch, head, first, 0]", "[batch, head, first + 1, 0]"),
    ],
)
@pytest.mark.usefixtures("small_tiles")
def test_a_broken_load_by_descriptors_fails(monkeypatch, tmp_path, old, new):
    """Pointers, which read none of this, stay right."""
    case = Case(2, 4, 2, 18, 20, 16, True, torch.float32)
    install_mutant(monkeypatch, tmp_path, attention_kernels, old, new)
    for backward in (False, True):
        assert failure(case, "triton-descriptors", backward) is not None
        assert failure(case, "triton", backward) is None


@pytest.mark.parametrize(
    ("old", "new"), [("tile * scale", "tile"), ("if first_key + BLOCK_N > key_length:", "if first_key < 0:")]
)
@pytest.mark.usefixtures("small_tiles")
def test_a_broken_atomic_pass_fails(monkeypatch, tmp_path, old, new):
    """Both mutations leave dK and dV alone; keys beyond the end, where not masked, add infinity times zero to dQ."""
    case = Case(1, 1, 1, 48, 33, 16, False, torch.float32)
    tensors = inputs(case)
    tensors["q"] = tensors["q"].abs() * 40
    tensors["k"] = -tensors["k"].abs() * 40  # all scores far below zero, so that a score of zero is far too much
    with poisoned():
        ours = PROVIDERS["triton-atomic"].prepare(case, tensors, True)()
    theirs = PROVIDERS["eager"].prepare(case, tensors, True)()
    exact = results(case, tensors, True)
    assert inaccuracy(ours, theirs, exact) is None
    install_mutant(monkeypatch, tmp_path, attention_kernels, old, new)
    with poisoned(), warnings.catch_warnings(action="ignore"):  # the interpreter speaks of the overflow
        ours = PROVIDERS["triton-atomic"].prepare(case, tensors, True)()
    assert (inaccuracy(ours, theirs, exact) or "").startswith("grad_q")


def test_mutants_leave_no_trace(tmp_path: Path):
    """A mutation whose text is not in the kernel fails instead of testing nothing."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="occurs 0 times"):
        install_mutant(patch, tmp_path, attention_kernels, "no such text", "")
