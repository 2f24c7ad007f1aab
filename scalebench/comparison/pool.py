"""Fresh inputs for timed calls: sets of values drawn before the clock, copied in place into the inputs that calls read.

A result that is kept from an earlier call is then wrong, and inputs are not in the caches because they never changed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

FEWEST, MOST = 4, 16  # sets, unless memory is short
CPU_CACHE_BYTES = 32 << 20  # stands for the last cache of a CPU
MEMORY_SHARE = 8  # a pool takes at most this part of the free memory


@dataclass
class Pool:
    """The ``live`` inputs, which prepared calls read, and the ``sets`` of values that are copied into them in turn."""

    live: Mapping[str, Tensor]
    sets: Sequence[Mapping[str, Tensor]]
    place: int = 0

    def refresh(self) -> None:
        """Copy the next set into the live inputs."""
        copy_in(self.live, self.sets[self.place])
        self.place = (self.place + 1) % len(self.sets)

    @property
    def method(self) -> str:
        """How inputs are refreshed, for ``Timer.method``."""
        return f"fresh inputs copied in before, from a pool of {len(self.sets)}"


def copy_in(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into the tensors of the same name, in place."""
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(values[name])


def live_names(module: Any, case: Any, backward: bool, inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs that a prepared call reads: by the operation's ``live``, if it has one.

    Otherwise all of them in a forward pass, and in a backward pass the incoming gradients, called ``grad_…``, since the
    forward pass was done with the others. Raises ``ValueError`` for a name that is not an input.
    """
    if hasattr(module, "live"):
        names = list(module.live(case, backward))
        if unknown := [name for name in names if name not in inputs]:
            raise ValueError(f"live() names {', '.join(unknown)}; the inputs are {', '.join(inputs)}")
    else:
        names = [name for name in inputs if not backward or name.startswith("grad_")]
    return [name for name in names if isinstance(inputs[name], Tensor)]


def draw(module: Any, case: Any, live: Mapping[str, Tensor], seed: int, label: str) -> dict[str, Tensor]:
    """Return new values of the live inputs, drawn with a seed made from ``seed`` and ``label``.

    Raises ``ValueError`` where ``inputs`` of the module makes other shapes with another seed, or the same values.
    """
    device = next(iter(live.values())).device if live else torch.device("cpu")
    own_seed = random.Random(f"{seed} {label}").getrandbits(31)
    drawn = module.inputs(case, device=str(device), seed=own_seed)
    values = {name: drawn[name] for name in live}
    wrong = [name for name in live if values[name].shape != live[name].shape]
    if wrong:
        raise ValueError(f"inputs() makes other shapes of {', '.join(wrong)} with another seed; only values may differ")
    full = [name for name in live if live[name].numel()]
    if full and all(torch.equal(values[name], live[name]) for name in full):
        raise ValueError("inputs() makes the same values with another seed: timed calls need fresh ones")
    return values


def draw_pool(module: Any, case: Any, inputs: Mapping[str, Any], backward: bool, seed: int) -> Pool | None:
    """Draw the sets of a case, or return None if prepared calls read no input.

    At least four sets, and up to 16 until they are larger than twice the last cache: fewer where memory is short.
    """
    live = {name: inputs[name] for name in live_names(module, case, backward, inputs)}
    if not live:
        return None
    size = sum(tensor.numel() * tensor.element_size() for tensor in live.values())
    count = set_count(size, *_cache_and_memory(next(iter(live.values())).device))
    return Pool(live, [draw(module, case, live, seed, f"timed {number}") for number in range(count)])


def set_count(set_bytes: int, cache_bytes: int, free_bytes: int) -> int:
    """Return the number of sets of ``set_bytes`` each; see ``draw_pool``."""
    size = max(set_bytes, 1)
    sets = min(max(2 * cache_bytes // size + 1, FEWEST), MOST)
    return max(1, min(sets, free_bytes // MEMORY_SHARE // size))


def _cache_and_memory(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return CPU_CACHE_BYTES, int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.get_device_properties(device).L2_cache_size), torch.cuda.mem_get_info(device)[0] + unused
