"""Less memory for the same global batch: what changes each time that a run has run out of memory.

The micro-batch is halved down to one row, and more of them are accumulated instead; then activations are computed again
in the backward pass. Neither changes what is learned: the loss is that of the global batch, normalised by its tokens.
"""

from __future__ import annotations

from finetune_operator.core.planner.batch import Batch, resolve_batch


def relieve(
    batch: Batch, gradient_checkpointing: bool, *, times: int, global_batch_size: int, world_size: int
) -> tuple[Batch, bool]:
    """The batch and whether to recompute activations, ``times`` steps safer than asked, or as safe as there is."""
    for _ in range(times):
        if batch.per_device > 1:
            batch = resolve_batch(global_batch_size, world_size, (batch.per_device + 1) // 2)
        else:
            gradient_checkpointing = True
    return batch, gradient_checkpointing
