"""One rank: the model as it is, AdamW on the trainable parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.config import Training
from finetune_trainer.strategies.base import (
    MOMENTS,
    HostBuffers,
    State,
    make_optimizer,
    set_learning_rate,
    trainable_parameters,
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
        limit = max_grad_norm if max_grad_norm > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        if math.isfinite(norm):
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
        self.discard()
        return norm

    def discard(self) -> None:
        """Drop accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gather(self) -> State:
        """Copy parameters and moments to the host."""
        for name, parameter in self.parameters.items():
            self._buffers.keep(f"param.{name}", parameter.detach())
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                self._buffers.keep(f"optim.{name}.{moment}", value)
        return self._buffers.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Replace all moments."""
        self._optimizer.state.clear()
        for name, parameter in self.parameters.items():
            if f"optim.{name}.step" not in state:
                continue
            # The step counter lies where AdamW keeps it: on the device when fused, on the host when not.
            fused = self._optimizer.defaults["fused"]
            step = state[f"optim.{name}.step"].to(parameter.device if fused else "cpu", copy=True)
            self._optimizer.state[parameter] = {"step": step} | {
                moment: state[f"optim.{name}.{moment}"].to(parameter.device, copy=True) for moment in MOMENTS
            }
