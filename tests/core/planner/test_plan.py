"""The plan of an attempt as a whole."""

from __future__ import annotations

import pytest

from finetune_operator.core.planner.plan import model_name, plan_attempt
from makers import a_job, a_snapshot, facts, packed_facts

pytestmark = pytest.mark.unit


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


def test_steps_of_packed_rows_count_sequences() -> None:
    """31 packs x 3 epochs / 16, not 216 rows."""
    plan = plan_attempt(a_snapshot(a_job().with_dataset(packing=True)), packed_facts(31))
    assert plan.total_steps == 6
