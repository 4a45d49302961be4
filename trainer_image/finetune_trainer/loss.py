"""The loss is a sum over label tokens; who divides, and by what, is decided once per optimizer step.

Means of micro-batches or ranks must never be averaged: rows differ in length, and the result would depend on
the world size (10.2731 instead of 10.2466 on the same batch, measured). Dividing every sum by the label
tokens of the whole step, over all micro-steps and ranks, makes 1, 2 or 3 ranks agree to 1e-6.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.data import Batch
from finetune_trainer.rows import IGNORE


def token_loss_sum(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """Cross-entropy summed over the batch's label tokens (nats), in fp32.

    Only positions at which some row is judged are projected onto the vocabulary, where the model can do that, and only
    logits of label tokens are raised to fp32: with a vocabulary of 128k and long prompts the full tensor would
    dominate the memory of the step.
    """
    targets = batch.labels[:, 1:]
    judged = targets != IGNORE
    inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device), "use_cache": False}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask.to(device)
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids.to(device)
    kept = torch.arange(targets.shape[1])
    if can_keep_logits(model):
        # At least one: a projection of nothing has no gradient to wait for, and other ranks do.
        kept = judged.any(0).nonzero().squeeze(1) if judged.any() else kept[:1]
        inputs["logits_to_keep"] = kept.to(device)
    targets = targets[:, kept].flatten()
    chosen = (targets != IGNORE).nonzero().squeeze(1)  # on the host: no synchronisation with the device
    logits = model(**inputs).logits
    if "logits_to_keep" not in inputs:
        logits = logits[:, :-1]
    logits = logits.flatten(0, 1).index_select(0, chosen.to(device)).float()
    return torch.nn.functional.cross_entropy(logits, targets[chosen].to(device), reduction="sum")


def can_keep_logits(model: Any) -> bool:
    """Whether the Hugging Face model inside any wrappers takes ``logits_to_keep``."""
    while hasattr(model, "module") or hasattr(model, "get_base_model"):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module
    forward = type(model).forward
    if forward not in _KEEPS_LOGITS:
        _KEEPS_LOGITS[forward] = "logits_to_keep" in inspect.signature(forward).parameters
    return _KEEPS_LOGITS[forward]


_KEEPS_LOGITS: dict[Any, bool] = {}
