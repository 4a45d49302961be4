"""How one model is spread over the ranks of a gang. The recipe knows only :class:`~.base.Strategy`.

The modules are imported when they are chosen: DeepSpeed alone takes seconds.
"""

from __future__ import annotations

from typing import Literal

from finetune_trainer.config import TrainConfig
from finetune_trainer.strategies.base import Strategy
from finetune_trainer.strategies.ddp import DdpStrategy
from finetune_trainer.strategies.single import SingleStrategy
from finetune_trainer.world import World

__all__ = ["DdpStrategy", "Strategy", "choose_strategy", "replicate"]


def choose_strategy(world: World, config: TrainConfig) -> tuple[Strategy, str]:
    """The strategy for this gang, and why."""
    chosen = config.distributed
    if chosen.strategy == "DDP" or (world.size == 1 and not chosen.cpu_offload):
        return replicate(world)
    offload = ", offloaded to the host" if chosen.cpu_offload else ""
    if chosen.strategy == "FSDP":
        from finetune_trainer.strategies.fsdp import FsdpStrategy

        across = config.topology.nodes == 1 or chosen.shard_across_nodes
        shards = world.size if across else config.topology.processes_per_node
        strategy = FsdpStrategy(
            world,
            config.topology,
            shard_across_nodes=chosen.shard_across_nodes,
            cpu_offload=chosen.cpu_offload,
            full=config.method.full is not None,
        )
        return strategy, f"{shards} shards, {world.size // shards} replicas{offload}"
    from finetune_trainer.strategies.zero import ZeroStrategy

    stage: Literal[2, 3] = 2 if chosen.strategy == "ZeRO2" else 3
    return ZeroStrategy(world, stage, cpu_offload=chosen.cpu_offload), f"{world.size} shards{offload}"


def replicate(world: World) -> tuple[Strategy, str]:
    """The whole model on every rank."""
    if world.size == 1:
        return SingleStrategy(world.device), "one rank"
    return DdpStrategy(world), f"{world.size} ranks that each hold the whole model"
