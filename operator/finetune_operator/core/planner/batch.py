"""Batch arithmetic: the global batch is the user's and never changes; the rest follows from the world size."""

from __future__ import annotations

import math
from dataclasses import dataclass

AUTOMATIC_PER_DEVICE = 4
"""Rows per forward pass when the user names none: small enough for one GPU of any pool we know."""


@dataclass(frozen=True)
class Batch:
    """Rows per forward pass and forward passes per optimizer step."""

    per_device: int
    accumulation_steps: int


def resolve_batch(global_batch_size: int, world_size: int, per_device: int | None) -> Batch:
    """Split a global batch over ``world_size`` ranks.

    ``accumulation = ceil(global / (per_device x world))``; when it does not divide, the trainer pads the last forward
    pass with rows of weight zero, so that the loss is that of the global batch whatever the world size.
    """
    share = math.ceil(global_batch_size / world_size)
    rows = min(per_device or AUTOMATIC_PER_DEVICE, share)
    return Batch(per_device=rows, accumulation_steps=math.ceil(global_batch_size / (rows * world_size)))


def total_steps(num_train_epochs: float | None, max_steps: int | None, items: int, global_batch_size: int) -> int:
    """Optimizer steps of the run: ``maxSteps``, or ``ceil(epochs x items / global batch)``; items are rows or packs."""
    if max_steps is not None:
        return max_steps
    return math.ceil((num_train_epochs or 0) * items / global_batch_size)
