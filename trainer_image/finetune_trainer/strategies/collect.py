"""Shards of many tensors to rank 0 in few messages.

One collective per tensor costs more than the data: LoRA on an 8B model has 1,344 tensors of state. So every rank lays
its shards end to end, and rank 0 receives one row per rank and cuts it up again.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_trainer.strategies.base import HostBuffers
from finetune_trainer.world import World

_PIECE = 32 * 1024**2
"""Elements per message on a device: rank 0 needs room there for one of every rank."""


class Collector:
    """Gathers flat shards; the buffers on rank 0 are reused."""

    def __init__(self, world: World, group: dist.ProcessGroup | None = None) -> None:
        """``group``: the ranks that hold the shards, in the order of the shards; None = all."""
        self._world = world
        self._group = group
        self._ranks = dist.get_world_size(group)
        self._buffers = HostBuffers()

    def gather(self, key: str, own: Tensor) -> Tensor:
        """Rows (ranks, elements) in host memory on rank 0, nothing (0 rows) elsewhere; collective.

        ``own``: flat, on all ranks of the same length and on the same kind of device.
        """
        if not self._world.is_main:
            for piece in torch.split(own, _PIECE) if own.is_cuda else (own,):
                dist.gather(piece.contiguous(), dst=0, group=self._group)
            return own.new_empty((0, own.numel()), device="cpu")
        rows = self._buffers.room(key, (self._ranks, own.numel()), own.dtype, pinned=own.is_cuda)
        if not own.is_cuda:
            dist.gather(own, list(rows), dst=0, group=self._group)
            return rows
        at = 0
        for piece in torch.split(own, _PIECE):
            received = [torch.empty_like(piece) for _ in range(self._ranks)]
            dist.gather(piece.contiguous(), received, dst=0, group=self._group)
            for row, part in zip(rows, received, strict=True):
                row[at : at + piece.numel()].copy_(part)
            at += piece.numel()
        return rows


def lay_end_to_end(shards: list[Tensor], length: int) -> Tensor:
    """One flat tensor of ``length`` elements, filled up with zeros."""
    flat = torch.zeros(length, dtype=shards[0].dtype, device=shards[0].device)
    at = 0
    for shard in shards:
        flat[at : at + shard.numel()].copy_(shard.flatten())
        at += shard.numel()
    return flat
