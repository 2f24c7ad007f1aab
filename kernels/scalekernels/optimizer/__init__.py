"""Fused optimizers: Adam, AdamW, SGD, Adagrad, RMSprop and Lion, all tensors of a dtype updated by one launch.

Per element, with gradient g (times the clip coefficient c), parameter p, moments m and v, step t from 1:

- AdamW: p ← (1 − lr·λ)·p; m ← m + (1 − β₁)(g − m); v ← β₂·v + (1 − β₂)·g²;
  p ← p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε). Adam: g ← g + λ·p instead of the first.
- SGD: b ← μ·b + (1 − dampening)·g, b = g at first; p ← p − lr·b, or lr·(g + μ·b) with Nesterov.
- Adagrad: s ← s + g²; p ← p − lr/(1 + (t − 1)·lr_decay) · g / (√s + ε).
- RMSprop: v ← α·v + (1 − α)·g²; p ← p − lr·g/(√v + ε); centred and momentum variants as in torch.
- Lion: p ← (1 − lr·λ)·p − lr·sign(β₁·m + (1 − β₁)·g); m ← β₂·m + (1 − β₂)·g.

c = min(1, max_grad_norm / (‖g‖ + 1e-6)) over all gradients, computed on the device; gradients are not modified.

Parameters are float32, bfloat16 (rounded stochastically) or float16, dense in any order of dimensions; arithmetic is
float32, bias corrections float64, state float32, bfloat16 or 8-bit codes. Files: ``kernels`` device code, ``tables``
the tables of tensor addresses for a launch, ``launch`` the custom operation, ``base`` and ``algorithms`` the classes,
``state`` optimizer state, ``reference`` the algorithms in plain torch, ``cases`` and ``alternatives`` for comparisons.
"""

from __future__ import annotations

from scalekernels.optimizer.algorithms import SGD, Adagrad, Adam, AdamW, Lion, RMSprop
from scalekernels.optimizer.alternatives import providers
from scalekernels.optimizer.base import FusedOptimizer
from scalekernels.optimizer.cases import CASES, GOALS, LADDER, LARGER, Case, cost, inputs, results
from scalekernels.optimizer.launch import compilations, optimizer_step
from scalekernels.optimizer.reference import reference

__all__ = [
    "CASES",
    "GOALS",
    "LADDER",
    "LARGER",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Case",
    "FusedOptimizer",
    "Lion",
    "RMSprop",
    "compilations",
    "cost",
    "inputs",
    "optimizer_step",
    "providers",
    "reference",
    "results",
]
