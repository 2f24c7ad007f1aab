"""What part of a training step runs as one unit: compiled blocks, the compiled model, or a CUDA graph of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalebench.errors import InputError
from scalebench.families import FAMILIES

# What each implementation can run as one; "auto" takes the first. Others launch operation by operation.
GRAPHS_OF = {"compile": ("model", "blocks"), "fused": ("blocks", "model", "step", "none")}


def decided_graph(name: str, train: Mapping[str, Any]) -> str:
    """Decide ``train.graph`` of a trial; ``InputError`` for a value that its implementation does not have."""
    allowed = GRAPHS_OF.get(train["implementation"], ("none",))
    graph = str(allowed[0] if train["graph"] == "auto" else train["graph"])
    if graph not in allowed:
        supported = f'implementation = "{train["implementation"]}" has {", ".join(allowed)}'
        raise InputError(f"train.graph: {graph!r} is not for every implementation: {supported}")
    if graph in ("blocks", "step") and "checkpointing" not in FAMILIES[name].CAPABILITIES:
        raise InputError(f"train.graph: {name} has no blocks to compile once for all; use auto or model")
    if graph == "step" and train["precision"] != "bfloat16":
        # float32 has no working copy to keep its gradients in place, and a float16 step may be skipped.
        raise InputError("train.graph: only a step in bfloat16 can be captured; set train.precision, or use blocks")
    if graph == "step" and train["batch_size"] % train["accumulation"]:
        raise InputError("train.graph: a captured step needs micro-batches of one size; let accumulation divide")
    return graph
