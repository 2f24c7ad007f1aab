"""How a family's parameters are divided between processes (FSDP2): block by block, the rest of the model together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

LISTS = ("blocks", "encoder", "decoder")  # names of a module's lists of blocks


def shard_blocks(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard each block of ``model``, if it has lists of them, and then what is left, over a one-dimensional mesh.

    A block's parameters are gathered when it computes and freed after it; those of the rest, such as embeddings, stay
    gathered from the start of the forward pass to the end of the backward pass. Works in place.
    """
    from torch import nn
    from torch.distributed.fsdp import fully_shard  # takes most of a second

    lists = (getattr(model, name, None) for name in LISTS)
    for block in (block for members in lists if isinstance(members, nn.ModuleList) for block in members):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
