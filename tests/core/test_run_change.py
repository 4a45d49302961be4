"""A new ``spec.runId``: the old run's children go first, then everything starts anew."""

from __future__ import annotations

import pytest

from makers import (
    Story,
    a_job,
    a_pod,
    a_prepare_job,
    a_result,
    a_snapshot,
    an_attempt_job,
    at,
    last_words,
    training,
    unrecorded,
)

pytestmark = pytest.mark.unit


def _complete() -> Story:
    story = training()
    words = last_words(0, result=a_result())
    story.sees(at(20), jobs=(an_attempt_job(is_complete=True),), pods=(a_pod().exited(0, words=words),))
    return story


def test_run_in_progress_is_given_up() -> None:
    """Its attempt is recorded as superseded, its Jobs are deleted."""
    story = training()
    story.job = story.job.with_run("2")
    story.sees(at(20), jobs=(a_prepare_job(), an_attempt_job()), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-prepare", "Job/support-a1"]
    assert story.status.attempts[-1].cause == "Superseded"
    assert story.condition("Reconciling") == ("True", "Restarting")


def test_gang_that_was_not_recorded_is_given_up_with_its_number() -> None:
    """The new run counts on from there."""
    story = unrecorded(training())
    story.job = story.job.with_run("2")
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]
    assert (story.status.totals.attempts, story.status.attempts[-1].cause) == (1, "Superseded")


def test_snapshot_goes_when_the_pods_are_gone() -> None:
    """And only then is the run forgotten."""
    story = training()
    story.job = story.job.with_run("2")
    story.sees(at(20), pods=(a_pod().deleted(gone_by=50),))
    assert story.deleted() == []
    story.sees(at(50), pods=(a_pod().deleted(gone_by=50),))
    assert story.deleted() == ["ConfigMap/support-run"]
    assert story.status.run is not None
    story.snapshot = None
    story.sees(at(51))
    assert story.status.run is None


@pytest.mark.parametrize("end", ["complete", "failed"])
def test_finished_job_starts_again(end: str) -> None:
    """All conditions of the old run are taken back."""
    story = _complete()
    if end == "failed":
        story = training()
        story.sees(jobs=(an_attempt_job(),), pods=(a_pod().exited(65),))
    story.job = story.job.with_run("2")
    for _ in range(3):
        story.sees(at(60))
        story.snapshot = None
    assert story.status.run is not None
    assert story.status.run.id == "2"
    assert {story.condition(type_)[0] for type_ in ("Complete", "Failed", "Stalled")} == {"False"}
    assert (story.status.facts, story.status.result, story.status.checkpoint) == (None, None, None)


def test_attempt_numbers_go_on() -> None:
    """Names of the new run's children never meet those of the old one."""
    story = _complete()
    story.job = story.job.with_run("2")
    for _ in range(3):
        story.sees(at(60))
        story.snapshot = None
    assert story.status.totals.attempts == 1
    assert story.status.totals.failures == 0


def test_going_back_to_the_old_run_id_does_not_revive_half_a_run() -> None:
    """Its children are being deleted already."""
    story = _complete()
    old = story.job
    story.job = old.with_run("2")
    story.sees(at(60), jobs=(an_attempt_job(is_complete=True),))
    story.job = old.with_status(story.status)
    story.sees(at(61))
    assert story.deleted() == ["ConfigMap/support-run"]
    assert {sweep.stage for sweep in story.actions.sweep} == {"prepare", "train"}
    assert story.created() == []


def test_other_edits_do_not_touch_a_run_in_progress() -> None:
    """Only runId does."""
    story = training()
    story.job = story.job.with_lora(r=2)
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert (story.deleted(), story.status.phase) == ([], "Running")


def test_lost_snapshot_of_an_edited_job_gives_the_run_up() -> None:
    """Nobody knows any more what was accepted; two runs must not be taken for one."""
    story = training()
    story.job, story.snapshot = story.job.with_lora(r=2), None
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]
    assert story.status.attempts[-1].cause == "Superseded"


def test_snapshot_of_another_run_gives_the_run_up() -> None:
    """It was taken by a pass that died before it could record it."""
    story = training()
    story.snapshot = a_snapshot(a_job().with_lora(r=2))
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]


def test_lost_snapshot_of_a_finished_job_changes_nothing() -> None:
    """Whatever its spec says by now."""
    story = _complete()
    story.job, story.snapshot = story.job.with_lora(r=2), None
    story.sees(at(60))
    assert (story.actions.status, story.created(), story.deleted()) == (None, [], [])
