"""One shipped configuration of a kernel, with everything needed to compile it without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = (80, 90, 100)  # compute capability times ten: A100, H100 and H200, B200


@dataclass(frozen=True)
class Compilation:
    """A kernel with everything that determines its machine code.

    ``signature`` types every argument by name in the order of the function ("*bf16", "i32", "fp32", "constexpr"),
    ``constants`` holds the values of the constexpr ones, ``aligned`` names the pointers and integers that a launch
    guarantees to be divisible by 16. ``work`` orders configurations of one kernel by tile size, largest last.
    ``options`` are launch options other than warps and stages.

    Requirements: with ``tensor_core`` matrix products must run on tensor cores (``wgmma`` on sm_90); at least one
    global load must have ``vector_bytes``; on sm_90 the main loop may have ``most_instructions`` per element, with
    ``elements`` per thread and iteration; with ``overlapped`` exponentials must run while a matrix product is in
    flight; a ``specialized`` kernel, whose producer warps fetch all tiles, may have no integer division and no 64-bit
    address in loops with products, nor write registers that a product in flight reads. ``spills_allowed`` is the reason
    for allowing register spills, ``overlap_excused`` that for exponentials beside no product. A ``candidate`` meets the
    same requirements, but no launch reaches it until a session on a GPU has found it faster.
    """

    kernel: str
    label: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    work: int
    aligned: tuple[str, ...] = ()
    tensor_core: bool = False
    vector_bytes: int | None = None
    spills_allowed: str = ""
    elements: int = 0
    most_instructions: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    overlapped: bool = False
    overlap_excused: str = ""
    specialized: bool = False
    candidate: bool = False
