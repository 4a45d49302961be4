"""``spec.suspend``: no pods while it is true."""

from __future__ import annotations

import pytest

from kstatus import kstatus
from makers import a_job, a_pod, a_prepare_job, a_prepare_pod, accepted, an_attempt_job, at, training, unrecorded

pytestmark = pytest.mark.unit


def test_suspending_ends_the_attempt_without_counting_it() -> None:
    """Its pods save and go."""
    story = training()
    story.job = story.job.suspended()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]
    assert story.status.attempts[-1].cause == "Suspended"
    assert story.status.totals.failures == 0
    assert (story.status.phase, story.condition("Running")) == ("Suspended", ("False", "Suspended"))
    assert "1 pods are saving" in story.status.message
    assert [event.message for event in story.actions.events] == [
        "suspended the run and asked its pods to save a checkpoint and end"
    ]


def test_gang_that_was_not_recorded_when_it_is_stopped_keeps_its_number() -> None:
    """The operator died between the two; the next gang has another number, and another one may write checkpoints."""
    story = unrecorded(training())
    running = story.job
    story.job = running.suspended()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]
    assert [(each.number, each.cause) for each in story.status.attempts] == [(1, "Suspended")]
    story.job = running.with_status(story.status)
    story.sees(at(60))
    assert "Job/support-a2" in story.created()


def test_suspended_job_rests() -> None:
    """Nothing is written again, and GitOps tools take it for done."""
    story = training()
    story.job = story.job.suspended()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(a_pod(),))
    story.sees(at(40))
    story.sees(at(50))
    assert (story.actions.status, story.created(), story.deleted()) == (None, [], [])
    assert kstatus(story.status, 1) == "Current"


def test_resuming_waits_for_the_pods_and_starts_the_next_attempt() -> None:
    """From the newest checkpoint, at once."""
    story = training()
    running = story.job
    story.job = running.suspended()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(a_pod(),))
    story.job = running.with_status(story.status)
    story.sees(at(31), pods=(a_pod().deleted(gone_by=60),))
    assert story.created() == []
    story.sees(at(60), pods=(a_pod().deleted(gone_by=60),))
    assert "Job/support-a2" in story.created()


def test_last_words_of_a_suspended_attempt_are_taken_over() -> None:
    """Of pods that had ended before, and of those that save on their way out."""
    story = training(a_job().on(nodes=2))
    assert story.snapshot is not None
    run = story.snapshot.digest[:12]
    running = a_pod(0).of_run(run)
    story.job = story.job.suspended()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(running, a_pod(1).of_run(run).exited(76, step=17)))
    assert (story.status.attempts[-1].cause, story.status.attempts[-1].step_to) == ("Suspended", 17)
    checkpoint = {"step": 21, "uri": "file:///mnt/finetune/storage/checkpoints/x"}
    story.sees(at(35), pods=(running.exited(75, step=21, checkpoint=checkpoint),))
    assert story.status.checkpoint is not None
    assert (story.status.attempts[-1].step_to, story.status.checkpoint.step) == (21, 21)


def test_last_words_that_only_a_watch_has_shown_are_taken_over_as_well() -> None:
    """A pod that has saved is gone half a second later."""
    story = training()
    assert story.snapshot is not None
    story.job = story.job.suspended()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(a_pod(),))
    checkpoint = {"step": 21, "uri": "file:///mnt/finetune/storage/checkpoints/x"}
    story.sees(at(35), vanished_pods=(a_pod().exited(75, step=21, checkpoint=checkpoint).vanished().build(),))
    assert story.status.checkpoint is not None
    assert (story.status.attempts[-1].step_to, story.status.checkpoint.step) == (21, 21)


def test_suspending_stops_the_cpu_stage_as_well() -> None:
    """No pods at all."""
    story = training()
    story.job = story.job.suspended()
    story.sees(jobs=(a_prepare_job(),))
    assert story.deleted() == ["Job/support-prepare"]


def test_suspending_stops_a_job_that_only_its_pods_tell_of() -> None:
    """Somebody removed our labels from it."""
    story = training()
    story.job = story.job.suspended()
    story.sees(pods=(a_prepare_pod(), a_pod(), a_pod(attempt=2).deleted(gone_by=30)))
    assert story.deleted() == ["Job/support-prepare", "Job/support-a1"]


def test_job_that_is_applied_suspended_is_checked_but_not_started() -> None:
    """Its spec errors show at once."""
    story = accepted(a_job().suspended())
    assert story.condition("Accepted") == ("True", "Accepted")
    story.sees()
    assert (story.created(), story.status.phase) == ([], "Suspended")
