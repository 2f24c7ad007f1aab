"""What a rehearsal of the GPU session on a CPU does: the same commands with less work, and without fused kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OPTIMIZER_STEPS = 20  # of an optimizer check: a step takes 50 ms in the interpreter
COMPILED = 2  # kernels of each operation that are compiled before the checks
MODEL = ("model.width=64", "model.heads=4", "model.head_dim=16")
TRAINING = (
    "train.device=cpu", "train.implementation=sdpa", "train.warmup_steps=1", "train.batch_size=2",
    "train.sequence_length=16", "data.validation_samples=8",
)  # fmt: skip
# Settings of a study, by its name.
STUDIES: Mapping[str, Sequence[str]] = {
    "base": (*MODEL, "model.hidden=128", "train.steps=2"),
    "int4": ("quantize.group_size=32",),
    "finetune": ("finetune.steps=2",),
    "distill": ("distill.steps=2", "distill.implementation=sdpa"),
    "gpu-speed": (
        *MODEL, *TRAINING, "zip=[]", "model.depth=1", "model.vocab_size=512", "data.vocab_size=300", "train.steps=2",
    ),
    "gpu-law": (*TRAINING, "model.head_dim=8", "model.params=[2e4, 4e4]", "train.tokens=400"),
}  # fmt: skip
# The shape of a comparison, by its operation.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "attention": {
        "batch": 1, "query_heads": 1, "key_heads": 1, "query_length": 16, "key_length": 16, "head_dimension": 16,
        "causal": True,
    },
    "cross-entropy": {"tokens": 8, "width": 8, "classes": 16},
    "norm": {"kind": "rms", "rows": 8, "width": 16, "residual": False},
    "optimizer": {"name": "small", "algorithm": "adamw", "shapes": "8x8+8"},
    "rotary": {"batch": 1, "length": 8, "heads": 1, "head_dimension": 16},
}  # fmt: skip
