"""What attention launches is what is compiled ahead: every kernel is replaced by one that notes its launches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scalekernels.attention import (
    HEAD_DIMENSIONS,
    compilations,
    hopper_backward,
    hopper_forward,
    hopper_fused,
    hopper_gradients,
    hopper_single,
    hopper_wide,
    tuned,
)
from scalekernels.attention import descriptors as attention_descriptors
from scalekernels.attention import hopper as attention_hopper
from scalekernels.attention import kernels as attention_kernels
from scalekernels.attention import launch as attention_launch
from scalekernels.attention import tiles as attention_tiles
from scalekernels.compilation import ARCHITECTURES, Compilation
from torch import Tensor
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import native_specialize_impl
from triton.tools.tensor_descriptor import TensorDescriptor

TRITON_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
STAGES = 3  # of a launch that names none
LENGTHS = (attention_tiles.SHORT, attention_tiles.SHORT + 1, tuned.SHORT + 1)  # each bucket of both tables


def described(compilation: Compilation) -> tuple[Any, ...]:
    """Everything of a compilation that a launch decides."""
    constants = tuple(sorted(compilation.constants.items()))
    types = tuple(sorted((name, kind) for name, kind in compilation.signature.items() if kind[0] in "*t"))
    options = tuple(sorted(compilation.options.items()))
    return compilation.kernel, constants, types, compilation.num_warps, compilation.num_stages, options


def triton_type(value: Tensor | TensorDescriptor) -> str:
    """As a launch names the type of a pointer or descriptor."""
    if isinstance(value, Tensor):
        return TRITON_TYPES[value.dtype]
    kind: str = native_specialize_impl(BaseBackend, value, False, True, True)[0]
    return kind


class Noted:
    """Stands in for a kernel, compiled or interpreted: a launch notes what :func:`described` tells of a compilation."""

    def __init__(self, kernel: Any, launched: set[tuple[Any, ...]]) -> None:
        self.kernel, self.launched = kernel, launched
        annotations = kernel.fn.__annotations__
        self.constants = {name for name in kernel.arg_names if "constexpr" in str(annotations.get(name))}

    def __getattr__(self, name: str) -> Any:
        """Return what the kernel has, for those that compile it."""
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what takes the arguments of a launch."""
        assert all(programs > 0 for programs in grid)
        return self.note

    def note(self, *, num_warps: int, num_stages: int = STAGES, **given: Any) -> None:
        """Note a launch; its arguments must be those of the kernel, each once."""
        arguments = {name: given.pop(name) for name in self.kernel.arg_names}
        constants = sorted((name, value) for name, value in arguments.items() if name in self.constants)
        types = sorted(
            (name, triton_type(value))
            for name, value in arguments.items()
            if name not in self.constants and not isinstance(value, int | float)
        )
        options = tuple(sorted(given.items()))
        self.launched.add((self.kernel.__name__, tuple(constants), tuple(types), num_warps, num_stages, options))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """What is launched while the test runs; nothing is."""
    launches: set[tuple[Any, ...]] = set()
    shipped = {configuration.kernel for arch in ARCHITECTURES for configuration in compilations(arch)} | {"hopper_all"}
    shipped.add("attention_scale_queries")
    for module in (attention_kernels, hopper_forward, hopper_backward, hopper_fused, hopper_single, hopper_wide):
        for name in shipped & vars(module).keys():
            monkeypatch.setattr(module, name, Noted(getattr(module, name), launches))
    for module in (attention_launch, attention_descriptors, attention_hopper):
        monkeypatch.setattr(module, "INTERPRETED", False)
    return launches


def launch_all(q: Tensor, causal: bool) -> None:
    """Launch every pass over q as queries, keys and values, in every way that there is."""
    for descriptors, gluon in ((False, True), (False, False), (True, False)):
        out, lse = attention_launch.forward(q, q, q, causal, 1.0, descriptors, gluon)
    for deterministic, descriptors, gluon in itertools.product((False, True), repeat=3):
        options = (causal, 1.0, deterministic, True, True, descriptors, gluon)
        attention_launch.backward(out, q, q, q, out, lse, *options)
    if hopper_gradients.unsupported(q=q) is None:
        hopper_gradients.backward(out, q, q, q, out, lse, causal, 1.0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_launched_is_what_is_compiled_ahead(monkeypatch, launched, arch):
    """Every launch over dtypes, head dimensions, length buckets and masks is among the compilations, and no more."""
    expected = {described(compilation) for compilation in compilations(arch)}
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: arch)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for head_dimension, length, causal in itertools.product(HEAD_DIMENSIONS, LENGTHS, (False, True)):
            launch_all(torch.empty(1, 1, length, head_dimension, dtype=dtype), causal)
    assert launched == expected


def test_head_dimension_256_is_a_candidate_until_it_is_measured(monkeypatch):
    def candidates() -> set[tuple[str, Any]]:
        return {(each.kernel, each.constants.get("CAUSAL")) for each in compilations(90) if each.candidate}

    both = {(kernel, causal) for kernel in ("hopper_keys_wide", "hopper_queries_single") for causal in (False, True)}
    assert candidates() == both | {("attention_statistics", None)}
    apart, measured = hopper_gradients.APART._asdict(), tuned.row
    place = ("method", 256, True, "long")
    monkeypatch.setattr(tuned, "row", lambda *case: apart if case == place else measured(*case))
    assert candidates() == {(kernel, causal) for kernel, causal in both if not causal}
    assert not [each for arch in (80, 100) for each in compilations(arch) if each.candidate]


def test_what_measured_methods_launch_is_compiled_ahead(monkeypatch, launched):
    """With rows for some methods, as a session on a GPU may add them, their kernel is compiled for these cases."""
    rows = {
        ("method", 64, True, "short"): hopper_gradients.Method("ordered", 64, 4, True),
        ("method", 128, False, "long"): hopper_gradients.Method("ordered", 64, 2),
        ("method-any-order", 128, True, "long"): hopper_gradients.Method("unordered", 64, 3),
    }
    measured = tuned.row
    monkeypatch.setattr(tuned, "row", lambda *place: rows[place]._asdict() if place in rows else measured(*place))
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: 90)
    expected = {described(compilation) for compilation in compilations(90)}
    assert {launch[0] for launch in expected} >= {"hopper_all", "attention_scale_queries"}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for head_dimension, length, causal in itertools.product(HEAD_DIMENSIONS, LENGTHS, (False, True)):
            launch_all(torch.empty(1, 1, length, head_dimension, dtype=dtype), causal)
    assert launched == expected
