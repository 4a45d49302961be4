"""Edits of an accepted run."""

from __future__ import annotations

import pytest

from finetune_operator.api.conditions import find_condition
from finetune_operator.core.drift import differences
from makers import (
    Story,
    a_job,
    a_pod,
    a_prepare_job,
    a_prepare_pod,
    a_result,
    a_snapshot,
    an_attempt_job,
    at,
    last_words,
    prepared,
    training,
)

pytestmark = pytest.mark.unit


def _message(story: Story) -> str:
    condition = find_condition(story.status.conditions, "SpecDrifted")
    assert condition is not None
    return condition.message


def test_an_edit_is_reported_and_touches_nothing() -> None:
    """Old value, new value, and how to apply it."""
    story = training()
    assert story.condition("SpecDrifted") == ("False", "AsAccepted")
    story.job = story.job.with_training(learningRate=1e-4)
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.condition("SpecDrifted") == ("True", "Edited")
    assert "training.learningRate: 0.0002 -> 0.0001" in _message(story)
    assert "spec.runId" in _message(story)
    assert (story.created(), story.deleted(), story.status.phase) == ([], [], "Running")


def test_an_edit_that_is_taken_back_is_forgotten() -> None:
    """The spec is as accepted again."""
    story = training()
    before = story.job
    story.job = story.job.with_training(learningRate=1e-4)
    story.sees()
    story.job = before.with_status(story.status)
    story.sees()
    assert story.condition("SpecDrifted") == ("False", "AsAccepted")


def test_fields_that_act_at_once_are_no_drift() -> None:
    """Suspending is not an edit of the run."""
    job = a_job()
    live = job.with_spec(suspend=True, runId="2", onChange="Restart", ttlSecondsAfterFinished=5)
    assert differences(job.spec(), live.spec()) == []


def test_priority_and_metadata_of_pods_are_part_of_what_was_accepted() -> None:
    """The next attempt's pods get those of the run."""
    edited = a_job().with_spec(priorityClassName="high", podMetadata={"labels": {"team": "b"}})
    assert differences(a_job().spec(), edited.spec()) == [
        "podMetadata.labels.team: unset -> b",
        "priorityClassName: unset -> high",
    ]


def test_many_edits_are_counted() -> None:
    """A condition's message is bounded."""
    story = training()
    changes = {"learningRate": 1e-4, "weightDecay": 0.1, "seed": 1, "warmupSteps": 3, "maxSteps": 9, "maxGradNorm": 2}
    story.job = story.job.with_training(**changes)
    story.sees()
    assert "and 1 more" in _message(story)


def test_on_change_restart_gives_the_run_up_for_the_new_spec() -> None:
    """A fresh run, without a new runId."""
    story = training(a_job().with_spec(onChange="Restart"))
    old = story.status.run
    assert old is not None
    story.job = story.job.with_training(learningRate=1e-4)
    story.sees(at(5), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]
    assert story.status.attempts[-1].cause == "Superseded"
    story.sees(at(6))
    assert story.deleted() == ["ConfigMap/support-run"]
    story.snapshot = None
    story.sees(at(7))
    story.sees(at(8))
    assert story.status.run is not None
    assert story.status.run.digest != old.digest
    assert story.condition("SpecDrifted") == ("False", "AsAccepted")


def test_on_change_restart_runs_a_finished_job_again() -> None:
    """The edit asks for another result."""
    story = training(a_job().with_spec(onChange="Restart"))
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(pod,))
    assert story.status.phase == "Complete"
    story.job = story.job.with_training(learningRate=1e-4)
    story.sees(at(5))
    assert story.status.phase == "Pending"


def test_a_finished_job_says_what_was_edited_after_its_end() -> None:
    """Its result is that of the old spec."""
    story = training()
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(pod,))
    story.job = story.job.with_lora(r=64)
    story.sees(at(5), jobs=(an_attempt_job(is_complete=True),), pods=(pod,))
    assert (story.status.phase, story.condition("SpecDrifted")) == ("Complete", ("True", "Edited"))


def test_an_edit_is_told_once() -> None:
    """Ten further looks write nothing."""
    story = training()
    view = {"jobs": (an_attempt_job(),), "pods": (a_pod(),)}
    story.sees(**view)  # type: ignore[arg-type]
    story.job = story.job.with_training(learningRate=1e-4)
    story.sees(**view)  # type: ignore[arg-type]
    assert story.events() == ["Edited"]
    for _ in range(10):
        story.sees(**view)  # type: ignore[arg-type]
        assert (story.events(), story.actions.status) == ([], None)


def test_an_edit_that_restarts_is_not_called_unapplied() -> None:
    """The message says what happens."""
    story = training(a_job().with_spec(onChange="Restart"))
    story.job = story.job.with_training(learningRate=1e-4)
    story.sees(at(5), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.events() == []
    assert "given up for" in _message(story)


def test_a_restarted_run_does_not_inherit_the_end_of_the_one_before() -> None:
    """A longer deadline makes no other digest: the attempts of the old run are not those of the new one."""
    story = training(a_job().with_spec(onChange="Restart", activeDeadlineSeconds=10))
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    story.job = story.job.with_spec(activeDeadlineSeconds=10_000)
    story.sees(at(30))
    story.snapshot = None
    story.sees(at(31))
    story.sees(at(32))
    assert story.status.run is not None
    assert story.status.run.first_attempt == 2
    story.snapshot = a_snapshot(story.job)
    words = prepared()
    run = story.snapshot.digest[:12]
    story.sees(
        at(33),
        jobs=(a_prepare_job(run=run, is_complete=True),),
        pods=(a_prepare_pod().of_run(run).exited(0, words=words),),
    )
    assert "Job/support-a2" in story.created()
    assert story.condition("Running") == ("False", "Starting")
