"""Alternative implementations of attention: PyTorch's own kernels, FlexAttention, flash-attn."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalekernels.attention.cases import Case
from scalekernels.providers import Provider, Unsupported

Compute = Callable[[Case, Tensor, Tensor, Tensor], Tensor]
Run = Callable[[], Mapping[str, Tensor]]


def prepared(compute: Compute) -> Callable[[Case, Mapping[str, Tensor], bool], Run]:
    """Return a provider's ``prepare`` for a differentiable function of (case, q, k, v).

    The forward pass is timed without an autograd graph. A timed backward repeats only the backward pass.
    """

    def prepare(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Run:
        q, k, v = (inputs[name].detach().requires_grad_(backward) for name in ("q", "k", "v"))
        if not backward:
            return lambda: {"out": _without_graph(compute, case, q, k, v)}
        out = compute(case, q, k, v)

        def run() -> Mapping[str, Tensor]:
            gradients = torch.autograd.grad(out, (q, k, v), inputs["grad_out"], retain_graph=True)
            return dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))

        return run

    return prepare


def _without_graph(compute: Compute, case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return compute(case, q, k, v)


def _refusing(compute: Compute) -> Callable[[Case, Mapping[str, Tensor], bool], Run]:
    """As :func:`prepared`, but a ``RuntimeError`` of a trial run becomes ``Unsupported`` with PyTorch's message."""

    def prepare(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Run:
        with warnings.catch_warnings(record=True) as raised:  # PyTorch warns why it does not use a backend
            warnings.simplefilter("always")
            try:
                run = prepared(compute)(case, inputs, backward)
                run()
            except torch.OutOfMemoryError:
                raise  # out of memory is not unsupported
            except RuntimeError as error:
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise Unsupported(
                    " ".join([first, *(str(warning.message).split(" (Triggered")[0] for warning in raised)])
                ) from error
        return run

    return prepare


def sdpa(backend: SDPBackend) -> Provider:
    """Return PyTorch's scaled dot-product attention, restricted to one backend."""

    def compute(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            grouped = case.query_heads != case.key_heads
            return F.scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=grouped)

    return Provider(f"torch scaled_dot_product_attention, {backend.name}", _refusing(compute))


def _flex_prepare(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Run:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device = inputs["q"].device.type
    lengths = case.query_length, case.key_length
    mask = create_block_mask(lambda _b, _h, i, j: i >= j, None, None, *lengths, device=device) if case.causal else None
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def compute(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=case.query_heads != case.key_heads)

    # The timed backward runs many times after one forward, so its saved tensors must not be donated as scratch space.
    with torch._functorch.config.patch(donated_buffer=False):
        return _refusing(compute)(case, inputs, backward)


def _flash_attn_prepare(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Run:
    if importlib.util.find_spec("flash_attn") is None:
        raise Unsupported("flash-attn is not installed")
    if case.causal and case.query_length != case.key_length:
        raise Unsupported("flash-attn aligns the causal mask at the bottom right; this case needs it at the top left")
    flash_attn = importlib.import_module("flash_attn")

    def compute(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        views = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return flash_attn.flash_attn_func(*views, causal=case.causal).transpose(1, 2)

    return _refusing(compute)(case, inputs, backward)


def alternatives() -> dict[str, Provider]:
    """Return the providers other than ours and eager, by name."""
    return {
        "sdpa-math": sdpa(SDPBackend.MATH),
        "sdpa-flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa-efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa-cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
        "flex": Provider("torch FlexAttention, compiled", _flex_prepare),
        "flash-attn": Provider("the flash-attn package", _flash_attn_prepare),
    }
