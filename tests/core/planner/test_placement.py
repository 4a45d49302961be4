"""Which pools a gang may go to, and in which order."""

from __future__ import annotations

import pytest

from finetune_operator.api.job import Placement
from finetune_operator.core.planner.placement import pools_for
from makers import a_pool, a_runtime

pytestmark = pytest.mark.unit

POOLS = a_runtime(
    a_pool("small", nodes=1, gpusPerNode=1),
    a_pool("wide", nodes=4, gpusPerNode=2),
    a_pool("huge", nodes=9, gpusPerNode=8),
)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ({}, "small"),
        ({"nodes": 2}, "wide"),
        ({"gpusPerNode": 8}, "huge"),
        ({"nodes": 10}, None),
        ({"pool": "huge"}, "huge"),
        ({"pool": "small", "nodes": 3}, None),
        ({"pool": "none"}, None),
    ],
    ids=["first", "more-nodes", "more-gpus", "nowhere", "named", "named-but-too-small", "unknown"],
)
def test_gang_goes_to_the_first_pool_that_is_large_enough(placement: dict[str, object], expected: str | None) -> None:
    """In the order of the runtime; a name overrules it."""
    pools = pools_for(POOLS, Placement.model_validate(placement))
    assert (pools[0].name if pools else None) == expected


def test_the_cheapest_pool_comes_first_and_those_without_a_price_last() -> None:
    """Prices decide where there are any; else the order of the runtime."""
    runtime = a_runtime(
        a_pool("unknown"), a_pool("dear", pricePerGpuHour=4), a_pool("cheap", pricePerGpuHour=1), a_pool("other")
    )
    pools = pools_for(runtime, Placement(nodes=2))
    assert [pool.name for pool in pools] == ["cheap", "dear", "unknown", "other"]
