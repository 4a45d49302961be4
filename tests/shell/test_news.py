"""Events of children that a decision can tell from the one before."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from finetune_operator import constants
from finetune_operator.shell.news import Interest, News
from finetune_operator.shell.object_key import ObjectKey

pytestmark = pytest.mark.unit

KEY, OTHER = ObjectKey("research", "support"), ObjectKey("research", "other")
Json = dict[str, Any]


def a_child(owner: str, **spec: Any) -> Json:
    """As a watch shows it."""
    return {
        "metadata": {
            "name": "support-a1",
            "uid": "child",
            "creationTimestamp": "2026-05-01T12:00:00Z",
            "labels": {constants.STAGE_LABEL: "train", constants.ATTEMPT_LABEL: "1", constants.JOB_UID_LABEL: "owner"},
            "annotations": {constants.COMPLETION_INDEX_ANNOTATION: "0"},
            "ownerReferences": [{"kind": owner, "uid": "owner", "controller": True}],
        },
        "spec": spec,
        "status": {},
    }


POD, JOB = a_child("Job", containers=[]), a_child(constants.JOB_KIND, template={})


def changed(raw: Json, part: str, **fields: Any) -> Json:
    """With other fields in its metadata, spec or status."""
    result = deepcopy(raw)
    result[part] |= fields
    return result


NONE, ROUTINE, NEWS = Interest.NONE, Interest.ROUTINE, Interest.NEWS
BOUND = changed(
    POD,
    "status",
    conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-05-01T12:00:01Z"}],
) | {"spec": POD["spec"] | {"nodeName": "n1"}}


def waiting(reason: str) -> Json:
    """A pod whose container does."""
    state = {"waiting": {"reason": reason}}
    return changed(POD, "status", containerStatuses=[{"name": constants.TRAINER_CONTAINER, "state": state}])


def of_stage(raw: Json, stage: str) -> Json:
    """The same child of another stage."""
    return changed(raw, "metadata", labels=raw["metadata"]["labels"] | {constants.STAGE_LABEL: stage})


PREPARE_POD = of_stage(POD, constants.STAGE_PREPARE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (POD, changed(POD, "status", podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "True"}])),
        (POD, changed(POD, "metadata", finalizers=[], resourceVersion="2")),
        (JOB, changed(JOB, "status", active=2, ready=1, terminating=0)),
    ],
    ids=["an address", "a finalizer", "a Job's counts"],
)
def test_what_passes_do_not_look_at_is_no_news(before: Json, after: Json) -> None:
    """Nor is the same thing shown again."""
    news = News()
    assert [news.shows(KEY, raw) for raw in (before, before, after)] == [ROUTINE, NONE, NONE]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (POD, BOUND),
        (POD, waiting("ContainerCreating")),
        (JOB, changed(JOB, "status", startTime="2026-05-01T12:00:01Z")),
        (JOB, changed(JOB, "status", conditions=[{"type": "Complete", "status": "True"}])),
        (PREPARE_POD, changed(PREPARE_POD, "status", phase="Running")),
    ],
    ids=["bound", "creating its container", "begun", "complete", "checking the model and the data"],
)
def test_what_goes_as_it_should_is_routine(before: Json, after: Json) -> None:
    """A pass has nothing to say about it."""
    news = News()
    assert [news.shows(KEY, raw) for raw in (before, after, after)] == [ROUTINE, ROUTINE, NONE]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (POD, changed(POD, "status", phase="Running")),
        (POD, changed(POD, "status", phase="Failed")),
        (BOUND, changed(BOUND, "status", phase="Running")),
        (PREPARE_POD, changed(PREPARE_POD, "status", phase="Succeeded")),
        (POD, waiting("ImagePullBackOff")),
        (POD, changed(POD, "status", conditions=[{"type": "PodScheduled", "status": "False", "message": "no room"}])),
        (POD, changed(POD, "status", conditions=[{"type": "DisruptionTarget", "status": "True"}])),
        (POD, changed(POD, "metadata", deletionTimestamp="2026-05-01T12:00:00Z")),
        (POD, changed(POD, "metadata", ownerReferences=[])),
        (POD, changed(POD, "metadata", labels={})),
        (JOB, changed(JOB, "spec", suspend=True)),
        (JOB, changed(JOB, "status", conditions=[{"type": "Failed", "status": "True"}])),
        (JOB, changed(JOB, "status", failedIndexes="1")),
        (JOB, changed(JOB, "metadata", deletionTimestamp="2026-05-01T12:00:00Z")),
        (JOB, changed(JOB, "metadata", ownerReferences=[])),
        (JOB, changed(JOB, "metadata", labels=JOB["metadata"]["labels"] | {constants.JOB_UID_LABEL: "x"})),
    ],
    ids=[
        "runs",
        "failed",
        "has its node and runs",
        "prepared",
        "no image",
        "no room",
        "preempted",
        "deleted",
        "orphan",
        "no labels",
        "suspended",
        "Job failed",
        "an index failed",
        "Job deleted",
        "not ours",
        "of another",
    ],
)
def test_what_a_decision_can_see_is_news_once(before: Json, after: Json) -> None:
    """And the way back is news again."""
    news = News()
    assert [news.shows(KEY, raw) for raw in (before, after, after, before)] == [ROUTINE, NEWS, NONE, NEWS]


@pytest.mark.parametrize(
    "raw",
    [
        changed(POD, "status", phase="Failed"),
        changed(
            POD,
            "metadata",
            ownerReferences=[],
            labels=POD["metadata"]["labels"] | {"batch.kubernetes.io/controller-uid": "j"},
        ),
        waiting("ImagePullBackOff"),
        changed(JOB, "status", conditions=[{"type": "Failed", "status": "True"}]),
    ],
    ids=["a pod that failed", "a pod without its Job", "a pod without its image", "a Job that failed"],
)
def test_a_child_that_was_not_seen_before_is_news_when_something_has_happened_to_it(raw: Json) -> None:
    """A new one to which nothing has is routine."""
    assert News().shows(KEY, raw) is NEWS


def test_that_a_child_is_gone_is_news() -> None:
    """However it looked before; one that comes back with its uid, after a watch was cut, is looked at as well."""
    news = News()
    news.shows(KEY, POD)
    assert news.shows(KEY, POD, is_gone=True) is NEWS
    assert news.shows(KEY, POD) is ROUTINE


def test_a_job_that_is_gone_is_forgotten() -> None:
    """It alone."""
    news = News()
    for key in (KEY, OTHER):
        news.shows(key, POD)
    news.forget(KEY)
    assert (news.shows(KEY, POD), news.shows(OTHER, POD)) == (ROUTINE, NONE)
