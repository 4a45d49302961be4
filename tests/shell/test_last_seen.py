"""The last state of training pods that a watch showed, for as long as it can be evidence."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator import constants
from finetune_operator.shell.last_seen import LastSeen
from finetune_operator.shell.object_key import ObjectKey

pytestmark = pytest.mark.unit

KEY, OTHER = ObjectKey("research", "support"), ObjectKey("research", "other")


def raw_pod(uid: str, *, attempt: int = 1, stage: str = "train", owner: str = "Job", **status: Any) -> dict[str, Any]:
    """A pod as the watch shows it."""
    return {
        "metadata": {
            "name": f"support-a{attempt}-0-{uid}",
            "uid": uid,
            "creationTimestamp": "2026-05-01T12:00:00Z",
            "labels": {constants.STAGE_LABEL: stage, constants.ATTEMPT_LABEL: str(attempt)},
            "annotations": {constants.COMPLETION_INDEX_ANNOTATION: "0"},
            "ownerReferences": [{"kind": owner, "uid": "job", "controller": True}],
        },
        "status": status,
    }


@pytest.fixture
def seen() -> LastSeen:
    """Two attempts of one job, one of another."""
    seen = LastSeen()
    for key, uid, attempt in ((KEY, "a", 1), (KEY, "b", 2), (OTHER, "c", 1)):
        seen.note(key, raw_pod(uid, attempt=attempt))
    return seen


def uids(seen: LastSeen, key: ObjectKey = KEY) -> set[str]:
    return {pod.uid for pod in seen.known(key)}


def test_pods_are_known_by_job(seen: LastSeen) -> None:
    """A job that no event spoke of has none."""
    assert (uids(seen), uids(seen, OTHER)) == ({"a", "b"}, {"c"})
    assert seen.known(ObjectKey("research", "new")) == ()


def test_the_newest_event_of_a_pod_is_kept(seen: LastSeen) -> None:
    """That of its deletion shows how it ended."""
    terminated = {"exitCode": 137, "reason": "OOMKilled"}
    container = {"name": constants.TRAINER_CONTAINER, "state": {"terminated": terminated}}
    seen.note(KEY, raw_pod("a", phase="Running"))
    seen.note(KEY, raw_pod("a", phase="Failed", containerStatuses=[container]))
    (pod,) = (pod for pod in seen.known(KEY) if pod.uid == "a")
    assert (pod.phase, pod.exit_code, pod.terminated_reason) == ("Failed", 137, "OOMKilled")


@pytest.mark.parametrize(
    "raw",
    [raw_pod("x", stage="prepare"), raw_pod("x", owner="ReplicaSet"), {"metadata": {"name": "x", "uid": "x"}}],
    ids=["prepare", "not made by a Job", "no pod of ours"],
)
def test_only_pods_of_a_gang_are_evidence(seen: LastSeen, raw: dict[str, Any]) -> None:
    """Anybody may write our labels on a pod."""
    seen.note(KEY, raw)
    assert uids(seen) == {"a", "b"}


def test_attempts_that_are_settled_are_forgotten(seen: LastSeen) -> None:
    """Of that job alone; the memory is bounded by the gangs that run."""
    seen.forget_before(KEY, 2)
    assert (uids(seen), uids(seen, OTHER)) == ({"b"}, {"c"})
    seen.forget_before(ObjectKey("research", "new"), 2)


def test_a_job_that_is_gone_is_forgotten(seen: LastSeen) -> None:
    """Twice does no harm."""
    for _ in range(2):
        seen.forget(KEY)
        assert (uids(seen), uids(seen, OTHER)) == (set(), {"c"})


def test_what_a_pass_holds_does_not_change_under_it(seen: LastSeen) -> None:
    """A pod that is made while the list is under way has not vanished."""
    held = seen.known(KEY)
    seen.note(KEY, raw_pod("d", attempt=2))
    assert {pod.uid for pod in held} == {"a", "b"}
