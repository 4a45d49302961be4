"""What the end of an attempt means for the next one."""

from __future__ import annotations

import pytest

from makers import SAVED, Story, a_job, a_pod, an_attempt_job, at, last_words, preempted, training

pytestmark = pytest.mark.unit


def test_out_of_memory_is_planned_anew_without_being_counted() -> None:
    """Half the rows, twice the accumulation; at once."""
    story = training(a_job().with_backoff_limit(0))
    rows = []
    for number in (1, 2, 3):
        assert story.status.plan is not None
        rows.append((story.status.plan.per_device_train_batch_size, story.status.plan.gradient_accumulation_steps))
        story.sees(at(10 * number), jobs=(an_attempt_job(number),), pods=(a_pod(attempt=number).exited(77),))
        story.sees(at(10 * number + 1))
    assert rows == [(4, 4), (2, 8), (1, 16)]
    assert story.status.plan is not None
    assert story.status.plan.gradient_checkpointing
    assert (story.status.totals.replans, story.status.totals.failures) == (3, 0)
    story.sees(at(40), jobs=(an_attempt_job(4),), pods=(a_pod(attempt=4).exited(77),))
    assert story.condition("Failed") == ("True", "BackoffLimitExceeded"), "no plan needs less"


def test_the_fourth_end_for_lack_of_memory_is_counted_and_followed_by_a_safer_plan_all_the_same() -> None:
    """The record says both."""
    story = training(a_job().with_training(perDeviceTrainBatchSize=8).with_backoff_limit(1))
    for number in (1, 2, 3, 4):
        story.sees(at(100 * number), jobs=(an_attempt_job(number),), pods=(a_pod(attempt=number).exited(77),))
        assert "the next one needs less memory" in story.status.message
        story.sees(at(100 * number + 50))
    assert [attempt.replanned for attempt in story.status.attempts[:4]] == [True] * 4
    assert (story.status.totals.replans, story.status.totals.failures) == (4, 1)
    assert story.status.plan is not None
    assert story.status.plan.gradient_checkpointing


def _third_disruption(limit: int) -> Story:
    """Two attempts went without having saved; the third is asked to go, and its pod has not ended yet."""
    story = training(a_job().with_backoff_limit(limit))
    preempted(story, 1, 0, 60)
    preempted(story, 2, 200, 260)
    story.sees(at(400))
    pod = a_pod(attempt=3).disrupted("EvictionByEvictionAPI", after=410)
    story.sees(at(410), jobs=(an_attempt_job(3),), pods=(pod,))
    assert story.status.attempts[-1].cause == "Preempted"
    assert (story.status.totals.without_progress, story.status.totals.failures) == (3, 1)
    return story


@pytest.mark.parametrize("limit", [0, 1])
def test_a_disruption_that_counts_does_so_no_more_when_its_pods_have_saved(limit: int) -> None:
    """Its end is recorded before they have: nothing is given up as long as they may say so."""
    story = _third_disruption(limit)
    assert story.status.phase == "Interrupted"
    saved = a_pod(attempt=3).exited(75, after=415, words=last_words(75, checkpoint=SAVED))
    story.sees(at(420), pods=(saved,))
    assert (story.status.totals.without_progress, story.status.totals.failures) == (0, 0)
    assert "Job/support-a4" in story.created()


def test_a_disruption_beyond_the_limit_ends_the_run_when_its_pods_have_gone_without_having_saved() -> None:
    """Nothing is left that could speak for it."""
    story = _third_disruption(0)
    story.sees(at(420), pods=(a_pod(attempt=3).exited(75, after=415),))
    assert story.condition("Failed") == ("True", "BackoffLimitExceeded")
    assert story.created() == []


def test_a_failure_that_ended_the_run_is_not_taken_back() -> None:
    """Its pod comes back with its node, and has saved after all: that is known, and the run stays as it ended."""
    story = _third_disruption(0)
    lost = a_pod(attempt=3).disrupted("EvictionByEvictionAPI", after=410).deleted(gone_by=420)
    story.sees(at(430), pods=(lost,))
    assert story.condition("Failed") == ("True", "BackoffLimitExceeded")
    saved = a_pod(attempt=3).exited(75, after=440, words=last_words(75, checkpoint=SAVED))
    for _ in range(2):
        story.sees(at(450), pods=(saved,))
    assert (story.status.phase, story.status.totals.failures) == ("Failed", 1)
    assert story.status.checkpoint is not None
    assert story.actions.status is None
