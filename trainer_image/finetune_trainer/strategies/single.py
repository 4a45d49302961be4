"""One rank: the model as it is, AdamW on the trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.config import Training
from finetune_trainer.strategies.base import (
    HostBuffers,
    State,
    clip,
    make_optimizer,
    restore_moments,
    state_key,
    trainable_parameters,
    update,
)


class SingleStrategy:
    """The whole model and optimizer on one device."""

    name = "single"
    is_sharded = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def wrap(self, model: Any, training: Training) -> Any:
        """Make the optimizer; the model stays as it is."""
        model.to(self._device)
        self.parameters = trainable_parameters(model)
        self._optimizer = make_optimizer(self.parameters, training, self._device)
        self._buffers = HostBuffers()
        return model

    def backward(self, loss_share: Tensor, last: bool) -> None:
        """Accumulate gradients."""
        loss_share.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip and update."""
        norm = float(clip(self.parameters, max_grad_norm))
        update(self._optimizer, norm, learning_rate)
        return norm

    def discard(self) -> None:
        """Drop accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gather(self) -> State:
        """Copy parameters and moments to the host."""
        for name, parameter in self.parameters.items():
            self._buffers.keep(state_key(name, "param"), parameter.detach())
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                self._buffers.keep(state_key(name, moment), value)
        return self._buffers.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Replace all moments."""
        restore_moments(
            self._optimizer, self.parameters, state, lambda parameter, whole: whole.to(parameter.device, copy=True)
        )
