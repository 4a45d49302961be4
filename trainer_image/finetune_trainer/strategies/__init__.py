"""How one model is spread over the ranks of a gang. The recipe knows only :class:`~.base.Strategy`."""

from __future__ import annotations

from finetune_trainer.strategies.base import Strategy
from finetune_trainer.strategies.ddp import DdpStrategy
from finetune_trainer.strategies.single import SingleStrategy
from finetune_trainer.world import World

__all__ = ["Strategy", "choose_strategy"]


def choose_strategy(world: World) -> tuple[Strategy, str]:
    """The strategy for this gang, and why."""
    if world.size == 1:
        return SingleStrategy(), "one rank"
    return DdpStrategy(world), f"{world.size} ranks that each hold the whole model"
