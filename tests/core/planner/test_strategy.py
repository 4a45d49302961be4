"""How the model is spread: the user's word first, then what the method needs."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.planner.plan import Plan, plan_attempt
from finetune_trainer.config import StrategyName
from makers import JobMaker, a_job, a_pool, a_runtime, a_snapshot

pytestmark = pytest.mark.unit

METHODS = {"lora": a_job(), "qlora": a_job().with_qlora(), "full": a_job().with_full()}


def _plan(job: JobMaker, **pool: Any) -> Plan:
    runtime = a_runtime(a_pool(**{"nodes": 4, "gpusPerNode": 8, **pool}))
    return plan_attempt(a_snapshot(job, runtime), None)


@pytest.mark.parametrize(
    ("method", "gpus", "offload", "expected"),
    [
        ("lora", 1, False, "DDP"),
        ("lora", 8, False, "DDP"),
        ("lora", 8, True, "FSDP"),
        ("qlora", 8, False, "DDP"),
        ("qlora", 1, True, "FSDP"),
        ("full", 1, False, "DDP"),
        ("full", 8, False, "FSDP"),
        ("full", 1, True, "FSDP"),
    ],
)
def test_omitted_strategy_is_the_simplest_that_works(method: str, gpus: int, offload: bool, expected: str) -> None:
    """Adapters are replicated; all parameters are sharded as soon as there are two GPUs."""
    job = METHODS[method].on(gpusPerNode=gpus).distributed(cpuOffload=offload)
    plan = _plan(job)
    assert (plan.distributed.strategy, plan.distributed.cpu_offload) == (expected, offload)


@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(get_args(StrategyName)),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_the_users_word_is_kept(method: str, strategy: str, offload: bool, nodes: int, gpus: int) -> None:
    """Whatever else is set; what cannot work is refused before."""
    job = METHODS[method].on(nodes=nodes, gpusPerNode=gpus).distributed(strategy=strategy, cpuOffload=offload)
    spread = _plan(job).distributed
    assert (spread.strategy, spread.cpu_offload) == (strategy, offload)


@pytest.mark.parametrize(
    ("strategy", "nodes", "gpus", "fabric", "expected"),
    [
        ("FSDP", 2, 8, "tcp", False),
        ("FSDP", 2, 8, "rdma", True),
        ("FSDP", 2, 1, "tcp", True),
        ("FSDP", 1, 8, "rdma", False),
        ("DDP", 2, 8, "rdma", False),
        ("ZeRO3", 2, 8, "rdma", False),
    ],
    ids=["hybrid-over-tcp", "rdma", "nothing-to-shard-within", "one-node", "ddp", "zero"],
)
def test_shards_cross_nodes_where_the_network_allows_or_the_node_cannot_shard(
    strategy: str, nodes: int, gpus: int, fabric: str, expected: bool
) -> None:
    """Only FSDP has the choice."""
    plan = _plan(a_job().on(nodes=nodes, gpusPerNode=gpus).distributed(strategy=strategy), fabric=fabric)
    assert plan.distributed.shard_across_nodes is expected


@pytest.mark.parametrize(
    ("placement", "distributed", "expected"),
    [
        ({}, {}, "single"),
        ({}, {"strategy": "FSDP"}, "single"),
        ({}, {"cpuOffload": True}, "FSDP"),
        ({}, {"strategy": "ZeRO2", "cpuOffload": True}, "ZeRO2"),
        ({"nodes": 2}, {}, "DDP"),
        ({"gpusPerNode": 2}, {"strategy": "ZeRO3"}, "ZeRO3"),
    ],
    ids=["one-rank", "one-rank-cannot-shard", "offload", "zero-offload", "two-nodes", "named"],
)
def test_status_names_the_strategy(placement: dict[str, Any], distributed: dict[str, Any], expected: str) -> None:
    """``status.plan.strategy``."""
    job = a_job().on(**placement).distributed(**distributed)
    runtime = a_runtime(a_pool())
    assert _plan(job).to_status(a_snapshot(job, runtime)).strategy == expected


@pytest.mark.parametrize("method", sorted(METHODS))
def test_status_names_the_method(method: str) -> None:
    """The Method column."""
    job = METHODS[method]
    assert _plan(job).to_status(a_snapshot(job)).method == method
