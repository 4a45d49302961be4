"""Batch arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.planner.batch import resolve_batch, total_steps

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
