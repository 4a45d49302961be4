"""Children are told apart from what only carries their labels."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator import constants
from finetune_operator.core.observed import loose_pods, own_jobs, own_pods, still_there
from makers import NAME, UID, a_pod, at

pytestmark = pytest.mark.unit


def _raw(owner: dict[str, Any] | None, *, attempt: str = "1", index: str = "0") -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{NAME}-a1-0-x",
            "uid": "u",
            "creationTimestamp": "2026-05-01T12:00:00Z",
            "labels": {constants.STAGE_LABEL: constants.STAGE_TRAIN, constants.ATTEMPT_LABEL: attempt},
            "annotations": {constants.COMPLETION_INDEX_ANNOTATION: index},
            "ownerReferences": [owner] if owner else [],
        }
    }


A_JOB = {"kind": "Job", "uid": "job-a1", "controller": True}
US = {"kind": constants.JOB_KIND, "uid": UID, "controller": True}


def test_pods_of_a_job_are_ours_also_when_it_is_gone() -> None:
    """They may still write."""
    (pod,) = own_pods([_raw(A_JOB)])
    assert (pod.job_uid, pod.attempt, pod.index) == ("job-a1", 1, 0)


@pytest.mark.parametrize(
    "raw",
    [
        _raw(None),
        _raw(A_JOB | {"kind": "ReplicaSet"}),
        _raw(A_JOB | {"controller": False}),
        _raw(A_JOB, attempt="first"),
        _raw(A_JOB, attempt="9" * 60),
        _raw(A_JOB, index="-1"),
        _raw(A_JOB, index="9" * 5000),
    ],
    ids=["nobody's", "a-replica-set's", "not-controlled", "word", "huge-attempt", "negative-index", "huge-index"],
)
def test_pods_labelled_by_hand_are_none_of_ours(raw: dict[str, Any]) -> None:
    """Their words are not believed, and no pass fails because of them."""
    assert own_pods([raw]) == ()


def test_pods_that_were_taken_from_their_job_are_loose_until_they_end() -> None:
    """They keep the label that the Job controller gave them, which nobody writes by hand."""
    raw = _raw(None)
    assert loose_pods([raw]) == ()
    raw["metadata"]["labels"][constants.JOB_CONTROLLER_LABEL] = "job-a1"
    assert [pod.attempt for pod in loose_pods([raw])] == [1]
    assert loose_pods([raw | {"status": {"phase": "Succeeded"}}]) == ()
    raw["metadata"]["ownerReferences"] = [A_JOB]
    assert loose_pods([raw]) == ()


def test_pod_without_our_labels_is_still_whose_it_was() -> None:
    """As it is now; one of another uid is another pod."""
    known = a_pod(1).build()
    raw = _raw(A_JOB, index="1") | {"status": {"phase": "Succeeded"}}
    raw["metadata"] |= {"uid": known.uid, "labels": {}}
    (pod,) = still_there([known, a_pod(0).build()], [raw])
    assert (pod.attempt, pod.index, pod.job_uid, pod.phase) == (1, 1, "job-a1", "Succeeded")


def test_end_of_a_pod_without_container_state_is_that_of_its_conditions() -> None:
    """A kubelet that refuses a pod, or a node that was reset, leaves nothing else."""
    times = ["2026-05-01T12:00:01Z", "2026-05-01T12:00:09Z"]
    raw = _raw(A_JOB)
    conditions = [{"type": f"C{time}", "status": "False", "lastTransitionTime": time} for time in times]
    for phase, expected in (("Failed", at(9)), ("Running", None)):
        (pod,) = own_pods([raw | {"status": {"phase": phase, "conditions": conditions}}])
        assert pod.finished_time == expected


@pytest.mark.parametrize(
    ("suspend", "condition", "expected"), [(True, "False", True), (False, "True", True), (False, "False", False)]
)
def test_job_is_suspended_until_its_controller_has_resumed_it(suspend: bool, condition: str, expected: bool) -> None:
    """Its start time, which tells the pods of before from those of after, is written together with the condition."""
    status = {"conditions": [{"type": "Suspended", "status": condition}]}
    (job,) = own_jobs([_raw(US) | {"spec": {"suspend": suspend}, "status": status}], UID)
    assert job.is_suspended is expected


@pytest.mark.parametrize(
    "raw", [_raw(None), _raw(US | {"uid": "other"}), _raw(US, attempt="first")], ids=["nobody's", "another's", "word"]
)
def test_jobs_labelled_by_hand_are_none_of_ours(raw: dict[str, Any]) -> None:
    """They would be deleted."""
    assert own_jobs([raw], UID) == ()
    assert len(own_jobs([_raw(US)], UID)) == 1
