"""The order of rows: whatever the gang and wherever it was interrupted, each row comes once per pass."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.config import Training
from finetune_trainer.sampler import Sampler, micro_steps, total_steps

pytestmark = pytest.mark.unit

ROWS = st.integers(1, 60)
BATCH = st.integers(1, 17)
PER_DEVICE = st.integers(1, 5)
WORLD = st.integers(1, 6)


def rows_of_step(sampler: Sampler, step: int, batch: int, per_device: int, world: int) -> list[int]:
    """The rows that all ranks of a gang train in one step, in the order of positions."""
    shares = [sampler.micro_batches(step * batch, batch, per_device, rank, world) for rank in range(world)]
    found = [[row for rows in share for row in rows if row is not None] for share in shares]
    longest = max(len(rows) for rows in found)
    return [rows[at] for at in range(longest) for rows in found if at < len(rows)]


@given(rows=ROWS, batch=BATCH, per_device=PER_DEVICE, worlds=st.lists(WORLD, min_size=1, max_size=12))
def test_each_row_comes_once_per_pass_whatever_the_gangs(
    rows: int, batch: int, per_device: int, worlds: list[int]
) -> None:
    """The world size may change at every step, as after an interruption there."""
    sampler = Sampler(rows, seed=7)
    steps = -(-2 * rows // batch)
    order = [
        row
        for step in range(steps)
        for row in rows_of_step(sampler, step, batch, per_device, worlds[step % len(worlds)])
    ]

    assert sorted(order[:rows]) == list(range(rows))
    assert sorted(order[rows : 2 * rows]) == list(range(rows))


@given(rows=ROWS, batch=BATCH, per_device=PER_DEVICE, world=WORLD, step=st.integers(0, 9))
def test_every_rank_takes_the_same_number_of_full_micro_batches(
    rows: int, batch: int, per_device: int, world: int, step: int
) -> None:
    """Collectives must match, so what does not divide is filled with rows of weight zero."""
    sampler = Sampler(rows, seed=7)
    for rank in range(world):
        share = sampler.micro_batches(step * batch, batch, per_device, rank, world)

        assert len(share) == micro_steps(batch, per_device, world)
        assert all(len(slots) == per_device for slots in share)


def test_passes_have_different_orders_that_depend_on_the_seed() -> None:
    """Neither is the first pass repeated, nor does every run see the same order."""
    orders = [[Sampler(50, seed).row_at(start + at) for at in range(50)] for seed in (1, 2) for start in (0, 50)]

    assert all(first != second for first, second in pairwise(orders))


def test_the_order_never_changes_between_versions() -> None:
    """A run that is resumed by a newer image goes on with the same rows."""
    assert [Sampler(6, seed=42).row_at(at) for at in range(12)] == GOLDEN


GOLDEN = [4, 1, 3, 0, 2, 5, 1, 2, 5, 3, 0, 4]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"max_steps": 7}, 7, id="max-steps"),
        pytest.param({"num_train_epochs": 1.0}, 3, id="part-of-a-batch-counts"),
        pytest.param({"num_train_epochs": 2.0}, 5, id="runs-on-across-passes"),
        pytest.param({"num_train_epochs": 0.01}, 1, id="at-least-one"),
    ],
)
def test_total_steps(settings: dict[str, float], expected: int) -> None:
    """Ten rows in batches of four."""
    training = Training.model_validate(
        {
            "learning_rate": 1.0,
            "global_batch_size": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        }
        | settings
    )

    assert total_steps(training, rows=10) == expected
