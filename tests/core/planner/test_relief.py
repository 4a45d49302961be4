"""What a plan that ran out of memory does next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.planner.batch import resolve_batch
from finetune_operator.core.planner.plan import plan_attempt
from finetune_operator.core.planner.relief import relieve
from makers import a_job, a_snapshot, facts

pytestmark = pytest.mark.unit


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


@given(st.integers(1, 4096), st.integers(1, 256), st.integers(1, 64), st.integers(0, 20))
def test_relief_never_takes_more_memory_nor_leaves_out_a_row(size: int, world: int, rows: int, times: int) -> None:
    """Whatever the topology."""
    batch = resolve_batch(size, world, rows)
    safer, _ = relieve(batch, False, times=times, global_batch_size=size, world_size=world)
    assert 1 <= safer.per_device <= batch.per_device
    assert safer.per_device * safer.accumulation_steps * world >= size
