"""The memory that a training trial is predicted to need, by precision, implementation and activation checkpointing.

The closed forms count what plain operations keep in float32 (``Counts.activation_bytes``). What other implementations
and 16 bits keep of it was measured: GPT of 124 M to 1.3 B parameters on an H200 (reports/h200/train.parquet), in bytes
per token, layer and unit of width (88 in the closed form), and per token and entry of the vocabulary (12):

==============  ======  =======================  ======
implementation  layers  attention probabilities  output
==============  ======  =======================  ======
eager               54  1.5 times (two copies)       10
sdpa                54  none                         10
triton              38  none                          2
compile             43  none                          1
fused               37  none                          0
==============  ======  =======================  ======

Within a factor of 1.3 of the allocator's peak there (tests/test_training_memory.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalebench.optim.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from scalebench.families import Counts
    from scalebench.workloads.training_spec import TrainSpec

# Shares of the closed form in 16 bits: of layers and of the output.
HALF = {
    "eager": (0.61, 0.83),
    "sdpa": (0.61, 0.83),
    "triton": (0.43, 0.17),
    "compile": (0.48, 0.1),
    "fused": (0.42, 0.02),
}
HALF_SCORES = 1.5  # autocast keeps probabilities in float32 and a copy in 16 bits for the product
BLOCK_INPUT = 1 / 16  # share of a block's activations that its input is: what checkpointing keeps


def training_memory(counts: Counts, spec: TrainSpec, depth: int, trained: int | None = None) -> int:
    """Return the peak in bytes of all processes: parameters, gradients, optimizer state, activations of a micro-batch.

    Each process holds all of it for its rows; under FSDP its part of the state, and at most all parameters gathered.
    ``depth`` is the number of blocks that checkpointing recomputes one at a time; ``trained`` is how many parameters
    have gradients and state, by default all.
    """
    per_trained = 1 + OPTIMIZERS[spec.optimizer].state_per_param
    held = counts.total + per_trained * (counts.total if trained is None else trained)
    rows = -(-spec.batch_size // spec.accumulation)
    copies = (1, spec.processes) if spec.parallel == "fsdp" else (spec.processes, 0)
    parameters = 4 * (held * copies[0] + counts.total * copies[1])
    if spec.implementation == "fused" and spec.precision != "float32":  # weights in 16 bits beside those in float32
        parameters += 2 * counts.total * spec.processes
    return parameters + rows * activation_bytes(counts, spec, depth)


def activation_bytes(counts: Counts, spec: TrainSpec, depth: int) -> int:
    """Return what is saved for backward, per sample."""
    half = spec.precision != "float32"
    layers, output = HALF.get(spec.implementation, HALF["eager"]) if half else (1.0, 1.0)
    plain = counts.activation_bytes - counts.score_bytes - counts.output_bytes
    blocks = layers * plain
    if spec.implementation == "eager":
        blocks += (HALF_SCORES if half else 1.0) * counts.score_bytes
    if spec.checkpointing:
        blocks = blocks / max(1, depth) + BLOCK_INPUT * plain
    return round(blocks + output * counts.output_bytes)
