"""The verbs of a strategy, and the names under which trainable state travels between strategies.

State has one form everywhere: ``param.<fqn>``, ``optim.<fqn>.exp_avg``, ``…exp_avg_sq``, ``…step``, where fqn
is the parameter's name in the model before it was wrapped. So a checkpoint written under one strategy and world
size is read under any other. Implementations do not inherit from each other; they share functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune_trainer.config import Training

State = dict[str, Tensor]
"""Trainable parameters and their optimizer state by name, complete, on the host."""
Parameters = dict[str, nn.Parameter]

MOMENTS = ("exp_avg", "exp_avg_sq")
PARAM = "param."


class Strategy(Protocol):
    """What the recipe asks of a distribution of the model; every method is collective."""

    name: str
    is_sharded: bool
    """Whether no rank can compute alone: a forward pass needs the weights that the others hold."""

    def wrap(self, model: Any, training: Training) -> Any:
        """Spread the model, make the optimizer, and return the model to call.

        Raises:
            SelfTestError: the spread model does not compute what the whole one does.
        """

    def backward(self, loss_share: Tensor, last: bool) -> None:
        """Accumulate gradients; ``last`` says that the step's other micro-steps came before.

        The shares of all micro-steps and ranks add up to the step's mean loss.
        """

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Combine the gradients of all ranks, clip (0 = do not), update; returns the norm before clipping.

        After a norm that is not finite, parameters and moments are void; nothing may be saved.
        """

    def discard(self) -> None:
        """Drop the gradients accumulated so far: the step will not be completed, nor any after it."""

    def gather(self) -> State:
        """Rank 0 gets the complete trainable state in host memory, the others may get nothing.

        The buffers are reused by the next call.
        """

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the optimizer's moments of a gathered state, whatever strategy and world size it came from.

        Moments that the state lacks start from nothing. Parameters are not touched: :func:`load_parameters` put
        them into the model before it was wrapped.
        """


class SelfTestError(Exception):
    """The sharded model computes something else than the whole one; nothing is trained with it."""


def trainable_parameters(model: nn.Module) -> Parameters:
    """By name, in the model's order: what is trained, saved and published."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_key(name: str, kind: str) -> str:
    """Where a parameter (kind ``param``), a moment of it or its ``step`` stands in a state."""
    return PARAM + name if kind == "param" else f"optim.{name}.{kind}"


def load_parameters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite the trainable parameters of a model that is not wrapped yet; collective where the state is shared.

    Raises:
        KeyError: the state lacks a trainable parameter.
    """
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(state[PARAM + name])


def make_optimizer(parameters: Parameters, training: Training, device: torch.device) -> torch.optim.AdamW:
    """AdamW; as in transformers, biases and norms (one dimension) do not decay. Fused where that is fast."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, training.weight_decay), (vectors, 0.0))
        if members
    ]
    fused = device.type == "cuda" or training.optim == "adamw_torch_fused"
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused, foreach=False)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """For all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip(parameters: Parameters, max_grad_norm: float) -> Tensor:
    """Scale gradients down to this norm (0 = do not); the norm before that."""
    return torch.nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm if max_grad_norm > 0 else math.inf)


def update(optimizer: torch.optim.Optimizer, norm: float, learning_rate: float) -> None:
    """One step, unless the gradients' norm is not finite; the gradients are gone afterwards."""
    if math.isfinite(norm):
        set_learning_rate(optimizer, learning_rate)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def restore_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    state: Mapping[str, Tensor],
    place: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Replace all moments; ``place`` copies a whole tensor, or this rank's shard of it, to its parameter's side."""
    optimizer.state.clear()
    for name, parameter in parameters.items():
        if state_key(name, "step") not in state:
            continue
        # The step counter lies where AdamW keeps it: on the device when fused, on the host when not.
        step_device = parameter.device if optimizer.defaults["fused"] else "cpu"
        optimizer.state[parameter] = {"step": state[state_key(name, "step")].to(step_device, copy=True)} | {
            moment: place(parameter, state[state_key(name, moment)]) for moment in MOMENTS
        }


class HostBuffers:
    """Host memory that is allocated at the first gathering and overwritten by every later one."""

    def __init__(self) -> None:
        self._held: State = {}

    def keep(self, key: str, value: Tensor) -> None:
        """Copy a tensor from wherever it is."""
        self.room(key, value.shape, value.dtype, pinned=value.is_cuda).copy_(value)

    def room(self, key: str, shape: Sequence[int], dtype: torch.dtype, *, pinned: bool) -> Tensor:
        """Memory of this shape; the same one every time."""
        if key not in self._held:
            self._held[key] = torch.empty(shape, dtype=dtype, device="cpu", pin_memory=pinned)
        return self._held[key]

    def state(self) -> State:
        """Everything kept so far."""
        return dict(self._held)
