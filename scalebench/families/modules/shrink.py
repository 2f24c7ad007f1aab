"""Leave units out of a trained model: what each head, hidden unit or layer writes, and the smaller model without some.

A unit's importance is measured on a batch: the L2 norm of what it adds to the residual stream, over all tokens. For a
head that is the norm of W_out,h m_h (m_h the values that it mixed), for a hidden unit j that of W_down,j a_j (a_j its
activation). A layer's is divided by the norm of its input, as the stream grows from layer to layer.

Legend: U units, D features of one (a head's dimension; 1 for a hidden unit), C width, n tokens, L depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

# The linear layers of a block, by the last part of their names, that compute a unit's input and write its output.
LAYERS = {"heads": ("qkv", "out"), "hidden": ("up", "down")}
PARTS = {"heads": 3, "hidden": 1}  # what the first computes of each unit: query, key and value


def importance(model: nn.Module, kind: str, units: int, run: Callable[[], object]) -> list[Tensor]:
    """Return what units write while ``run()`` calls the model: (U,) for each block, or one (L,) for layers."""
    sums: list[list[Tensor]] = [[] for _ in _blocks(model)]
    with ExitStack() as stack:
        for block, entries in zip(_blocks(model), sums, strict=True):
            if kind == "layers":
                handle = block.register_forward_hook(lambda _, x, y, to=entries: to.append(_relative(x[0], y)))
            else:
                writer = _layer(block, LAYERS[kind][1])[1]
                handle = writer.register_forward_pre_hook(
                    lambda layer, x, to=entries: to.append(_norms(layer, x[0], units))
                )
            stack.callback(handle.remove)
        with torch.no_grad():
            run()
    totals = [torch.stack(entries).sum(0).sqrt() for entries in sums]
    return [torch.stack(totals)] if kind == "layers" else totals


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    blocks: Any = model.blocks
    return list(blocks)


def _layer(block: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return path and module of the block's layer whose path ends in ``name``."""
    return next((path, module) for path, module in block.named_modules() if path.rpartition(".")[2] == name)


def _norms(writer: nn.Module, x: Tensor, units: int) -> Tensor:
    """Return the squared norm, (U,), of what each unit's features in x (…, U D) become through the writer (C, U D)."""
    weight: Any = writer.weight
    parts, features = weight.float().unflatten(1, (units, -1)), x.float().unflatten(-1, (units, -1)).flatten(0, -3)
    gram = torch.einsum("cud,cue->ude", parts, parts)
    return torch.einsum("nud,ude,nue->u", features, gram, features)


def _relative(x: Tensor, y: Any) -> Tensor:
    """Return the squared norm of what a block added to x (…, C), over that of x, ()."""
    output = y[0] if isinstance(y, tuple) else y
    return (output.float() - x.float()).square().sum() / x.float().square().sum()


def largest(values: Sequence[Tensor], number: int) -> list[Tensor]:
    """Return the indices, ascending, of the ``number`` largest of each (U,)."""
    return [each.topk(number).indices.sort().values for each in values]


def shrink(model: nn.Module, smaller: nn.Module, kind: str, units: int, chosen: Sequence[Tensor]) -> None:
    """Fill a smaller model of the same family with the weights of the ``chosen`` of ``units`` units of each block."""
    state = dict(model.state_dict())
    if kind == "layers":
        state = dict(_renumbered(state, chosen[0].tolist()))
    else:
        for number, (block, indices) in enumerate(zip(_blocks(model), chosen, strict=True)):
            reader, writer = (f"blocks.{number}.{_layer(block, name)[0]}" for name in LAYERS[kind])
            rows = _features(state[f"{reader}.weight"].shape[0], units, indices, PARTS[kind])
            columns = _features(state[f"{writer}.weight"].shape[1], units, indices)
            state |= {f"{reader}.{name}": state[f"{reader}.{name}"][rows] for name in ("weight", "bias")
                      if f"{reader}.{name}" in state}  # fmt: skip
            state[f"{writer}.weight"] = state[f"{writer}.weight"][:, columns]
    smaller.load_state_dict(state)


def _features(size: int, units: int, chosen: Tensor, parts: int = 1) -> Tensor:
    """Return the places of the chosen units among ``size`` features (parts, U, D) laid out in a row."""
    return torch.arange(size, device=chosen.device).view(parts, units, -1)[:, chosen].flatten()


def _renumbered(state: Mapping[str, Tensor], chosen: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's tensors without the blocks left out, the others numbered from 0."""
    numbers = {str(old): str(new) for new, old in enumerate(chosen)}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        old, _, inner = rest.partition(".")
        if head != "blocks":
            yield name, tensor
        elif old in numbers:
            yield f"blocks.{numbers[old]}.{inner}", tensor
