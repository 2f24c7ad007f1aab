"""A small GPT to quantise, its sizes, and specs of every scheme."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scalebench.families import gpt
from scalebench.workloads.quantize_spec import QuantizeSpec


def spec(scheme: str, **changes: Any) -> QuantizeSpec:
    bits = {"float32": 32, "bfloat16": 16, "simulated": 3, "int4-weight-only": 4}.get(scheme, 8)
    plain = {
        "scheme": scheme, "bits": bits, "group_size": 32 if scheme == "int4-weight-only" else None,
        "outer_layers": False, "precision": "bfloat16" if bits in (4, 16) else "float32", "implementation": "eager",
        "sequence_length": 16, "seed": 0,
    }  # fmt: skip
    return QuantizeSpec(**(plain | changes))


def model(*, tied: bool = True, **changes: int) -> nn.Module:
    shape = {"depth": 2, "width": 32, "heads": 2, "head_dim": 16, "hidden": 64, "vocab_size": 61, "context": 16}
    torch.manual_seed(0)
    return gpt.build(gpt.Config(**(shape | changes), tied=tied), "eager")


WIDTH, HIDDEN, VOCABULARY, DEPTH = 32, 64, 61, 2


HIDDEN_WEIGHTS = DEPTH * (4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
