"""The pass as a whole: who has the say, and silence when nothing changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.core.actions import Actions
from kstatus import kstatus
from makers import Story, a_job, a_pod, a_result, an_attempt_job, at, last_words, training

pytestmark = pytest.mark.unit


def _complete() -> tuple[Story, dict[str, object]]:
    story = training()
    words = last_words(0, result=a_result())
    view = {"jobs": (an_attempt_job(is_complete=True),), "pods": (a_pod().exited(0, words=words),)}
    story.sees(at(20), **view)  # type: ignore[arg-type]
    return story, view


def test_job_that_is_being_deleted_is_left_alone() -> None:
    """Owner references take the children along."""
    story = training()
    story.job = story.job.being_deleted()
    assert story.sees(jobs=(an_attempt_job(),), pods=(a_pod().exited(1),)) == Actions()


def test_finished_job_is_left_alone() -> None:
    """Zero writes, zero calls, and nothing to come back for."""
    story, view = _complete()
    actions = story.sees(at(500), **view)  # type: ignore[arg-type]
    assert actions == Actions()
    assert kstatus(story.status, 1) == "Current"


def test_finished_job_takes_note_of_an_edit() -> None:
    """``observedGeneration`` follows, or GitOps tools would wait for ever; nothing else changes."""
    story, view = _complete()
    before = story.status
    story.job = replace(story.job.suspended(), generation=2)
    story.sees(at(500), **view)  # type: ignore[arg-type]
    assert story.status.observed_generation == 2
    changed = [new.type for new, old in zip(story.status.conditions, before.conditions, strict=True) if new != old]
    assert changed == ["SpecDrifted"], "which says that nothing differs, now of generation 2"
    assert story.condition("SpecDrifted") == ("False", "AsAccepted")
    assert (story.created(), story.deleted()) == ([], [])


def test_job_that_was_never_looked_at_is_in_progress() -> None:
    """The CRD's default makes it so."""
    assert kstatus(FineTuneJobStatus.model_validate({"observedGeneration": -1}), 1) == "InProgress"


def test_spec_that_stops_to_parse_does_not_stop_a_run() -> None:
    """The snapshot is what counts."""
    story = training()
    story.job = story.job.unreadable("spec.method: must be set")
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.status.phase == "Running"


def test_status_that_is_read_back_is_the_status_that_was_written() -> None:
    """Else every pass would write."""
    story, _ = _complete()
    assert FineTuneJobStatus.model_validate(story.status.to_dict()) == story.status


def test_microseconds_of_the_clock_change_nothing() -> None:
    """Kubernetes keeps whole seconds."""
    story = Story(a_job())
    story.sees(at(0.25))
    assert all(c.last_transition_time.microsecond == 0 for c in story.status.conditions)
