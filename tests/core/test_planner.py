"""Batch arithmetic and placement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.api.job import Placement
from finetune_operator.core.planner.batch import resolve_batch, total_steps
from finetune_operator.core.planner.placement import pools_for
from finetune_operator.core.planner.plan import model_name, plan_attempt
from makers import a_job, a_pool, a_runtime, a_snapshot, facts

pytestmark = pytest.mark.unit

global_batches = st.integers(1, 65536)
worlds = st.integers(1, 16384)
per_devices = st.none() | st.integers(1, 4096)


@given(global_batches, worlds, per_devices)
def test_batch_covers_the_global_batch(size: int, world: int, per_device: int | None) -> None:
    """Every row is in a step; what is more is padding with weight zero, less than one forward pass of the gang."""
    batch = resolve_batch(size, world, per_device)
    capacity = batch.per_device * batch.accumulation_steps * world
    assert capacity >= size
    assert capacity - size < batch.per_device * world


@given(global_batches, worlds, per_devices)
def test_batch_never_exceeds_what_was_asked_for(size: int, world: int, per_device: int | None) -> None:
    """The user's micro-batch is an upper bound: it was chosen for memory."""
    batch = resolve_batch(size, world, per_device)
    assert 1 <= batch.per_device <= (per_device or 4)
    assert batch.accumulation_steps >= 1


@given(global_batches, worlds)
def test_one_forward_pass_is_enough_when_all_rows_fit(size: int, world: int) -> None:
    """A micro-batch larger than a rank's share is cut to it instead of padded."""
    batch = resolve_batch(size, world, 65536)
    assert batch.accumulation_steps == 1
    assert batch.per_device == -(-size // world)


@pytest.mark.parametrize(
    ("size", "world", "per_device", "expected"),
    [
        (16, 1, None, (4, 4)),
        (16, 2, None, (4, 2)),
        (16, 8, None, (2, 1)),
        (16, 3, None, (4, 2)),
        (10, 4, 8, (3, 1)),
        (1, 8, None, (1, 1)),
    ],
    ids=["one-gpu", "two", "more-gpus-than-needed", "does-not-divide", "share-is-smaller", "fewer-rows-than-ranks"],
)
def test_batch_of_known_cases(size: int, world: int, per_device: int | None, expected: tuple[int, int]) -> None:
    """Numbers to check by hand."""
    batch = resolve_batch(size, world, per_device)
    assert (batch.per_device, batch.accumulation_steps) == expected


@given(st.floats(0.01, 100), st.integers(1, 10**7), global_batches)
def test_a_run_has_at_least_one_step(epochs: float, rows: int, size: int) -> None:
    """However small the dataset."""
    assert total_steps(epochs, None, rows, size) >= 1


def test_max_steps_decides() -> None:
    """Whatever the dataset."""
    assert total_steps(None, 7, 1000, 16) == 7


def test_steps_of_epochs_are_rounded_up() -> None:
    """The last, smaller batch counts."""
    assert total_steps(3, None, 216, 16) == 41


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


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (0, (8, 2, False)),
        (1, (4, 4, False)),
        (2, (2, 8, False)),
        (3, (1, 16, False)),
        (4, (1, 16, True)),
        (9, (1, 16, True)),
    ],
)
def test_a_plan_that_ran_out_of_memory_halves_its_rows_and_then_recomputes_activations(
    times: int, expected: tuple[int, int, bool]
) -> None:
    """The global batch is the same at every step."""
    job = a_job().with_training(globalBatchSize=16, perDeviceTrainBatchSize=8)
    plan = plan_attempt(a_snapshot(job), facts(), replans=times)
    assert (plan.batch.per_device, plan.batch.accumulation_steps, plan.gradient_checkpointing) == expected
    assert plan.can_be_safer == (times < 4)
    assert plan.to_status(a_snapshot(job)).global_batch_size == 16


def test_plan_keeps_the_global_batch_on_any_topology() -> None:
    """More GPUs, fewer accumulation steps."""
    job = a_job().with_training(globalBatchSize=32, perDeviceTrainBatchSize=2)
    one = plan_attempt(a_snapshot(job), facts())
    eight = plan_attempt(a_snapshot(job.on(nodes=4, gpusPerNode=2)), facts())
    assert (one.batch.accumulation_steps, eight.batch.accumulation_steps) == (16, 2)
    assert one.total_steps == eight.total_steps
    assert (one.strategy, eight.strategy) == ("single", "DDP")


def test_plan_without_facts_does_not_guess_the_steps() -> None:
    """They depend on rows that nobody has counted."""
    assert plan_attempt(a_snapshot(), None).total_steps is None
    assert plan_attempt(a_snapshot(a_job().with_training(maxSteps=5)), None).total_steps == 5


def test_plan_outside_every_pool_is_an_error() -> None:
    """Acceptance rules it out; nothing is planned by halves."""
    with pytest.raises(ValueError, match=r"spec.placement must fit"):
        plan_attempt(a_snapshot(a_job().on(nodes=99)), facts())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"uri": "hf://HuggingFaceTB/SmolLM2-135M@main"}, "HuggingFaceTB/SmolLM2-135M"),
        ({"persistentVolumeClaim": {"claimName": "models", "path": "a/tiny/"}}, "tiny"),
        ({"persistentVolumeClaim": {"claimName": "models"}}, "models"),
    ],
    ids=["hub", "path", "whole-volume"],
)
def test_model_column_shows_a_short_name(model: dict[str, object], expected: str) -> None:
    """The column is narrow."""
    job = a_job()
    job.raw["model"] = model
    assert model_name(a_snapshot(job)) == expected
