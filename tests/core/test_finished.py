"""What is left of a finished run, and for how long."""

from __future__ import annotations

import pytest

from finetune_operator.core.actions import Sweep
from makers import a_job, a_pod, a_result, an_attempt_job, at, last_words, training

pytestmark = pytest.mark.unit


def test_children_are_removed_when_their_time_is_over_and_the_result_stays() -> None:
    """ConfigMaps and Services first, Jobs with their pods last, until it is done."""
    story = training(a_job().with_spec(ttlSecondsAfterFinished=100))
    jobs = (an_attempt_job(is_complete=True),)
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(at(50), jobs=jobs, pods=(pod,))
    story.sees(at(60), jobs=jobs, pods=(pod,))
    assert (story.deleted(), story.actions.requeue_after) == ([], 90)
    story.sees(at(150), jobs=jobs, pods=(pod,))
    assert story.deleted() == ["Job/support-a1"]
    assert story.actions.sweep == (Sweep("prepare"), Sweep("train"))
    story.sees(at(151))
    assert story.condition("Running") == ("False", "ChildrenRemoved")
    story.sees(at(152))
    assert (story.deleted(), story.actions.sweep, story.actions.status) == ([], (), None)
    assert story.status.result is not None


def test_the_time_to_live_of_a_finished_run_can_still_be_changed() -> None:
    """It is not part of the run."""
    story = training(a_job().with_spec(ttlSecondsAfterFinished=10))
    jobs = (an_attempt_job(is_complete=True),)
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(at(50), jobs=jobs, pods=(pod,))
    story.job = story.job.with_spec(ttlSecondsAfterFinished=None)
    story.sees(at(500), jobs=jobs, pods=(pod,))
    assert story.deleted() == []
