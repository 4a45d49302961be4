"""The verbs of a strategy, and the names under which trainable state travels between strategies.

State has one form everywhere: ``param.<fqn>``, ``optim.<fqn>.exp_avg``, ``…exp_avg_sq``, ``…step``, where fqn
is the parameter's name in the peft model without any wrapper's prefix. So a checkpoint written under one
strategy and world size is read under any other. Implementations do not inherit from each other; they share
functions.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from finetune_trainer.config import Training

State = dict[str, Tensor]
"""Trainable parameters and their optimizer state by name, complete, on the host."""


class Strategy(Protocol):
    """What the recipe asks of a distribution of the model; every method is collective."""

    name: str

    def setup(self, model: Any, training: Training) -> Any:
        """Wrap or shard the model, make the optimizer, and return the model to call."""

    def backward(self, loss_share: Tensor) -> None:
        """Accumulate gradients. The shares of all micro-steps and ranks add up to the step's mean loss."""

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Combine the gradients of all ranks, clip (0 = do not), update; returns the norm before clipping.

        A norm that is not finite leaves the parameters as they were.
        """

    def discard(self) -> None:
        """Drop the gradients accumulated so far: the step will not be completed."""

    def gather(self) -> State:
        """Rank 0 gets the complete trainable state in host memory, the others may get nothing.

        The buffers are reused by the next call.
        """

    def restore(self, state: State) -> None:
        """Continue from a gathered state, whatever strategy and world size it came from.

        Raises:
            KeyError: the state lacks a trainable parameter.
        """


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, in the model's order: what is trained, saved and published."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
