"""Where a gang may go: every placement of the job with every pool that it can mean, in the order of trying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_operator.api.job import Placement
from finetune_operator.api.runtime import FineTuneRuntimeSpec, Pool


@dataclass(frozen=True)
class Candidate:
    """One placement in one pool that is large enough for it."""

    placement: Placement
    pool: Pool


def candidates(runtime: FineTuneRuntimeSpec, placements: Sequence[Placement]) -> list[Candidate]:
    """All of them; a placement that fits nowhere has none."""
    return [Candidate(placement, pool) for placement in placements for pool in pools_for(runtime, placement)]


def pools_for(runtime: FineTuneRuntimeSpec, placement: Placement) -> list[Pool]:
    """The named pool, or all; only those that are large enough, the cheapest first, and those without a price last."""
    pools = [pool for pool in runtime.pools if placement.pool in (None, pool.name) and fits(pool, placement)]
    return sorted(pools, key=_price)


def fits(pool: Pool, placement: Placement) -> bool:
    """Whether the pool has as many nodes and GPUs per node as the placement asks for."""
    return placement.nodes <= pool.nodes and placement.gpus_per_node <= pool.gpus_per_node


def _price(pool: Pool) -> float:
    return pool.price_per_gpu_hour if pool.price_per_gpu_hour is not None else math.inf
