"""How the model is spread over the ranks: what the user asked for, or the simplest that works for the method.

An adapter's gradients are small, so everything is replicated (DDP) unless somebody asks for less memory. Training every
parameter needs sixteen bytes for each, so it is sharded as soon as there are two GPUs.
"""

from __future__ import annotations

from finetune_operator.api.job import Distributed as Asked
from finetune_operator.api.job import Placement
from finetune_operator.api.runtime import Pool
from finetune_trainer.config import Distributed, MethodName, StrategyName


def choose_strategy(method: MethodName, asked: Asked, placement: Placement, pool: Pool) -> Distributed:
    """Resolve ``spec.distributed`` for one placement."""
    strategy = asked.strategy or _automatic(method, asked, placement)
    return Distributed(
        strategy=strategy,
        cpu_offload=asked.cpu_offload,
        shard_across_nodes=strategy == "FSDP" and _shards_cross_nodes(placement, pool),
    )


def _automatic(method: MethodName, asked: Asked, placement: Placement) -> StrategyName:
    several = placement.nodes * placement.gpus_per_node > 1
    return "FSDP" if asked.cpu_offload or (method == "full" and several) else "DDP"


def _shards_cross_nodes(placement: Placement, pool: Pool) -> bool:
    """Shards are gathered in every layer: over TCP that is slower than a copy per node, if a node can shard at all."""
    return placement.nodes > 1 and (pool.fabric == "rdma" or placement.gpus_per_node == 1)
