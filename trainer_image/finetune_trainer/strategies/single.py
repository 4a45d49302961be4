"""One rank: the model as it is, AdamW on the trainable parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.config import Training
from finetune_trainer.strategies.base import State, trainable_parameters

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class SingleStrategy:
    """The whole model and optimizer on one device."""

    name = "single"

    def setup(self, model: Any, training: Training) -> Any:
        """Make the optimizer; the model stays as it is."""
        self.parameters = trainable_parameters(model)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self._host: State = {}
        return model

    def backward(self, loss_share: Tensor) -> None:
        """Accumulate gradients."""
        loss_share.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip and update."""
        limit = max_grad_norm if max_grad_norm > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self.discard()
        return norm

    def discard(self) -> None:
        """Drop accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gather(self) -> State:
        """Copy parameters and moments into host buffers that are allocated once."""
        for name, parameter in self.parameters.items():
            self._keep(f"param.{name}", parameter.detach())
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                self._keep(f"optim.{name}.{moment}", value)
        return dict(self._host)

    def restore(self, state: State) -> None:
        """Overwrite parameters and moments."""
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(state[f"param.{name}"])
            if f"optim.{name}.step" in state:
                self._optimizer.state[parameter] = {
                    moment: _placed(state[f"optim.{name}.{moment}"], moment, parameter) for moment in _MOMENTS
                }

    def _keep(self, key: str, value: Tensor) -> None:
        if key not in self._host:
            self._host[key] = torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format)
        self._host[key].copy_(value)


def _placed(value: Tensor, moment: str, parameter: Tensor) -> Tensor:
    # AdamW keeps its step counter on the host and the moments beside the parameter.
    return value.clone() if moment == "step" else value.to(parameter.device, copy=True)
