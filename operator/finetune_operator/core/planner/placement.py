"""Which pool a gang goes to."""

from __future__ import annotations

from finetune_operator.api.job import Placement
from finetune_operator.api.runtime import FineTuneRuntimeSpec, Pool


def choose_pool(runtime: FineTuneRuntimeSpec, placement: Placement) -> Pool | None:
    """The named pool, or the first that is large enough; None when there is none.

    A named pool is returned even when it is too small, so that the caller can say so.
    """
    if placement.pool is not None:
        return next((pool for pool in runtime.pools if pool.name == placement.pool), None)
    return next((pool for pool in runtime.pools if fits(pool, placement)), None)


def fits(pool: Pool, placement: Placement) -> bool:
    """Whether the pool has as many nodes and GPUs per node as the placement asks for."""
    return placement.nodes <= pool.nodes and placement.gpus_per_node <= pool.gpus_per_node
