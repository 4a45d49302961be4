"""``activeDeadlineSeconds``: whose time counts, and what happens when it is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from makers import SAVED, a_job, a_pod, an_attempt_job, at, last_words, preempted, training

pytestmark = pytest.mark.unit


def test_the_deadline_adds_up_over_attempts() -> None:
    """Sixty seconds in the first, forty in the second."""
    story = training(a_job().with_spec(activeDeadlineSeconds=100))
    preempted(story, 1, 0, 60)
    assert story.status.totals.active_seconds == 60
    second = an_attempt_job(2, creation_time=at(70))
    story.sees(at(100), jobs=(second,), pods=(a_pod(attempt=2),))
    assert (story.status.phase, story.actions.requeue_after) == ("Running", 10)
    story.sees(at(110), jobs=(second,), pods=(a_pod(attempt=2),))
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    assert "apply it with a longer spec.activeDeadlineSeconds" in story.status.message


@pytest.mark.parametrize(
    ("deadline", "placement", "after"), [(None, 60, 60), (40, 60, 40), (80, 60, 60)], ids=["none", "sooner", "later"]
)
def test_a_new_gang_is_looked_at_when_its_time_is_over(deadline: int | None, placement: int, after: int) -> None:
    """Pods that wait for nodes, or for anything else, send no event."""
    job = a_job().with_spec(placement=[{"scheduleTimeoutSeconds": placement}], activeDeadlineSeconds=deadline)
    story = training(job)
    assert "Job/support-a1" in story.created()
    assert story.actions.requeue_after == after


def test_time_in_which_nobody_looked_is_not_the_jobs() -> None:
    """The pod ended after ten minutes; the operator was away for two hours."""
    story = training(a_job().with_spec(activeDeadlineSeconds=7200))
    job = an_attempt_job()
    story.sees(at(5), jobs=(job,), pods=(a_pod().bound(0),))
    ended = a_pod().bound(0).exited(75, after=600, words=last_words(75, checkpoint=SAVED))
    story.sees(at(7300), jobs=(job,), pods=(ended,))
    story.sees(at(7301), pods=(ended,))
    assert "Job/support-a2" in story.created()
    assert (story.status.totals.active_seconds, story.status.attempts[0].gpu_seconds) == (600, 600)


def test_no_attempt_is_created_when_the_deadline_passed_while_the_last_one_ended() -> None:
    """Its pods would be killed at once."""
    story = training(a_job().with_spec(activeDeadlineSeconds=100))
    preempted(story, 1, 0, 101)
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    assert story.created() == []


QUEUED = replace(a_job().with_spec(activeDeadlineSeconds=100), labels={"kueue.x-k8s.io/queue-name": "q"})


def test_time_in_a_queue_is_not_the_jobs() -> None:
    """Before the Job controller has begun with an admitted Job, nothing runs either."""
    story = training(QUEUED)
    story.sees(at(7000), jobs=(an_attempt_job(is_suspended=True),))
    story.sees(at(7200), jobs=(an_attempt_job(),), pods=(a_pod().pending(),))
    assert (story.status.phase, story.actions.requeue_after) == ("Queued", 1)
    story.sees(at(7201), jobs=(an_attempt_job(start_time=at(7200)),), pods=(a_pod().bound(7200),))
    assert story.status.phase == "Running"


def test_what_a_queue_takes_back_is_added_up() -> None:
    """Forty seconds, then hours in the queue, then sixty."""
    story = training(QUEUED)
    story.sees(at(10), jobs=(an_attempt_job(start_time=at(10)),), pods=(a_pod().bound(10),))
    story.sees(at(50), jobs=(an_attempt_job(is_suspended=True),))
    story.sees(at(9000), jobs=(an_attempt_job(is_suspended=True),))
    assert (story.status.totals.active_seconds, story.status.totals.gpu_seconds) == (40, 40)
    again = an_attempt_job(start_time=at(9000))
    story.sees(at(9059), jobs=(again,), pods=(a_pod().bound(9000),))
    assert story.status.phase == "Running"
    story.sees(at(9060), jobs=(again,), pods=(a_pod().bound(9000),))
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
