"""The loss is a sum over label tokens; who divides, and by what, is decided once per optimizer step.

Means of micro-batches or ranks must never be averaged: rows differ in length, and the result would depend on
the world size (10.2731 instead of 10.2466 on the same batch, measured). Dividing every sum by the label
tokens of the whole step, over all micro-steps and ranks, makes 1, 2 or 3 ranks agree to 1e-6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune_trainer.data import Batch
from finetune_trainer.rows import IGNORE


def token_loss_sum(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """Cross-entropy summed over the batch's label tokens (nats), in fp32.

    Only the logits of label tokens are raised to fp32: with a vocabulary of 128k and long prompts the full
    tensor would dominate the memory of the step.
    """
    given = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    # No cache, and no mask where rows are packed: with either of them they would attend to each other (see data.py).
    output = model(
        input_ids=batch.input_ids.to(device),
        use_cache=False,
        **{name: tensor.to(device) for name, tensor in given.items() if tensor is not None},
    )
    targets = batch.labels[:, 1:].flatten()
    judged = (targets != IGNORE).nonzero().squeeze(1)  # on the host: no synchronisation with the device
    logits = output.logits[:, :-1].flatten(0, 1).index_select(0, judged.to(device)).float()
    return torch.nn.functional.cross_entropy(logits, targets[judged].to(device), reduction="sum")
