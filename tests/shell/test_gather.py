"""What is stored and does not parse becomes a text, never the end of a pass; lists are as new as they must be."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.constants import ATTEMPT_LABEL, JOB_CONTROLLER_LABEL, STAGE_LABEL, TRAINER_CONTAINER
from finetune_operator.core.observed import NodeState
from finetune_operator.errors import KubernetesError, NotFound, Unavailable
from finetune_operator.shell.gather import Gatherer, Memory
from finetune_operator.shell.inventory import Inventory
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.news import Interest
from finetune_operator.shell.object_key import ObjectKey
from makers import MINIMAL_SPEC, NAME, NAMESPACE, UID, a_pod

pytestmark = pytest.mark.unit


class Stored(Kube):
    """An API server with a FineTuneJob and its snapshot."""

    def __init__(self, status: dict[str, Any], data: dict[str, str]) -> None:
        self.queries: list[str] = []
        self.paths: list[str] = []
        self.versions: list[str] = []
        """That lists had to be no older than; empty: of the newest."""
        self.error: KubernetesError | None = None
        """What lists are answered with …"""
        self.may_be_old = False
        """… if they have to be the newest."""
        meta = {"namespace": NAMESPACE, "name": NAME, "uid": UID, "resourceVersion": "1"}
        owners = [{"uid": UID, "controller": True}]
        self.objects = {
            f"finetunejobs/{NAME}": {"metadata": meta, "spec": MINIMAL_SPEC, "status": status},
            f"configmaps/{NAME}-run": {"metadata": {"uid": "c", "ownerReferences": owners}, "data": data},
            f"namespaces/{NAMESPACE}": {"metadata": {}},
            "jobs": {"metadata": {"resourceVersion": "1"}, "items": []},
            "pods": {"metadata": {"resourceVersion": "1"}, "items": []},
        }

    async def get(self, path: str, query: Any = None) -> Any:
        """By the end of its path."""
        self.queries.append((query or {}).get("labelSelector", ""))
        self.paths.append(path)
        if path.endswith(("/jobs", "/pods")):
            self.versions.append((query or {}).get("resourceVersion", ""))
            if self.error is not None and not (self.may_be_old and self.versions[-1]):
                raise self.error
        for end, found in self.objects.items():
            if path.endswith(f"/{end}"):
                return found
        raise NotFound(path, 404)


@pytest.mark.parametrize(
    "data", [{}, {"snapshot.json": "{}"}, {"snapshot.json": "no JSON"}], ids=["no-key", "{}", "text"]
)
async def test_snapshot_that_does_not_parse(data: dict[str, str]) -> None:
    """A person has to look at it."""
    observed = await Gatherer(Stored({}, data), Inventory()).gather(ObjectKey(NAMESPACE, NAME), Memory())
    assert observed is not None
    assert observed.snapshot is None
    assert observed.snapshot_error.startswith("snapshot.json")


async def test_runtime_that_does_not_parse() -> None:
    """The field is named as its owner knows it."""
    stored = Stored({}, {})
    stored.objects[f"configmaps/{NAME}-run"]["metadata"]["deletionTimestamp"] = "2026-05-01T12:00:00Z"
    stored.objects["finetuneruntimes/default"] = {"spec": {"image": "x", "pools": [{"name": "a", "nodes": -1}]}}
    observed = await Gatherer(stored, Inventory()).gather(ObjectKey(NAMESPACE, NAME), Memory())
    assert observed is not None
    assert observed.runtime is None
    assert observed.runtime_error.startswith("spec.pools.0.nodes: ")


async def test_status_that_does_not_parse(caplog: pytest.LogCaptureFixture) -> None:
    """Is logged, and read as far as it goes."""
    status = {"phase": "Dreaming", "totals": {"attempts": 7}}
    observed = await Gatherer(Stored(status, {}), Inventory()).gather(ObjectKey(NAMESPACE, NAME), Memory())
    assert observed is not None
    assert observed.job.status.totals.attempts == 7
    assert "phase" in caplog.text


async def test_pod_without_our_labels_is_looked_for_before_it_counts_as_gone() -> None:
    """By the Job controller's label, and only when one that was at work is missing."""
    key, pod = ObjectKey(NAMESPACE, NAME), a_pod()
    stored = Stored({}, {})
    gatherer = Gatherer(stored, Inventory())
    await gatherer.gather(key, Memory(seen_pods=(pod.exited(0).build(),)))
    assert not any(JOB_CONTROLLER_LABEL in query for query in stored.queries)
    observed = await gatherer.gather(key, Memory(seen_pods=(pod.build(),)))
    assert observed is not None
    assert f"{JOB_CONTROLLER_LABEL} in (job-a1)" in stored.queries
    assert [each.is_vanished for each in observed.vanished_pods] == [True]


KEY = ObjectKey(NAMESPACE, NAME)
ACCEPTED = {"phase": "Preparing", "observedGeneration": 1}
NEW = {"observedGeneration": -1}
"""As the API server fills it in."""


async def versions_of(gatherer: Gatherer, stored: Stored) -> list[str]:
    """How new the lists of a pass had to be."""
    stored.versions.clear()
    await gatherer.gather(KEY, Memory())
    return stored.versions


async def test_lists_of_the_first_pass_are_the_newest_and_then_as_new_as_what_was_seen() -> None:
    """By watches and earlier lists, for each kind of its own."""
    stored = Stored(ACCEPTED, {})
    gatherer = Gatherer(stored, Inventory())
    assert await versions_of(gatherer, stored) == ["", ""]
    gatherer.freshness.shown(KEY, "Job", "7", Interest.NEWS)
    stored.objects["jobs"]["metadata"]["resourceVersion"] = "8"
    assert await versions_of(gatherer, stored) == ["7", "1"]
    assert await versions_of(gatherer, stored) == ["8", "1"]


async def test_lists_are_the_newest_again_when_somebody_else_has_changed_the_job() -> None:
    """Another operator perhaps, with children of its own; our own change is none."""
    stored = Stored(ACCEPTED, {})
    gatherer = Gatherer(stored, Inventory())
    await gatherer.gather(KEY, Memory())
    job = stored.objects[f"finetunejobs/{NAME}"]

    job["metadata"]["resourceVersion"] = "2"
    assert await versions_of(gatherer, stored) == ["1", "1", "", ""]

    job["metadata"]["resourceVersion"] = "3"
    gatherer.wrote(KEY, job)
    assert await versions_of(gatherer, stored) == ["1", "1"]


async def test_job_that_was_never_accepted_needs_no_new_lists() -> None:
    """What an operator made that died then is made again by the same names."""
    stored = Stored(NEW, {})
    assert await versions_of(Gatherer(stored, Inventory()), stored) == ["0", "0"]


async def test_lists_are_the_newest_again_after_a_read_that_failed() -> None:
    """The API server may not know the version: etcd was restored, or the server lags behind."""
    stored = Stored(ACCEPTED, {})
    gatherer = Gatherer(stored, Inventory())
    await gatherer.gather(KEY, Memory())
    stored.error = Unavailable("Too large resource version", 504)
    with pytest.raises(Unavailable):
        await gatherer.gather(KEY, Memory())
    stored.error = None
    assert await versions_of(gatherer, stored) == ["", ""]


async def test_a_change_by_somebody_else_is_not_known_before_the_children_were_read_as_well() -> None:
    """The first try saw the change, and could not list what came with it."""
    stored = Stored(ACCEPTED, {})
    gatherer = Gatherer(stored, Inventory())
    await gatherer.gather(KEY, Memory())
    stored.objects[f"finetunejobs/{NAME}"]["metadata"]["resourceVersion"] = "2"
    stored.error, stored.may_be_old = Unavailable("etcd has no leader", 503), True
    with pytest.raises(Unavailable):
        await gatherer.gather(KEY, Memory())
    stored.error = None
    assert await versions_of(gatherer, stored) == ["", ""]


# --- nodes --------------------------------------------------------------------------------------------------------

LIVE = {"observedGeneration": 1, "attempts": [{"number": 1}]}
ENDED = {"observedGeneration": 1, "attempts": [{"number": 1, "endTime": "2026-05-01T12:01:00Z"}]}
KILLED = {
    "phase": "Failed",
    "containerStatuses": [{"name": TRAINER_CONTAINER, "state": {"terminated": {"exitCode": 137}}}],
}
RUNNING = {"phase": "Running"}


def a_raw_pod(status: dict[str, Any], *, stage: str = "train", **meta: Any) -> dict[str, Any]:
    """As the API server lists it."""
    return {
        "metadata": {
            "name": "support-a1-0-x",
            "uid": "pod",
            "resourceVersion": "1",
            "creationTimestamp": "2026-05-01T12:00:00Z",
            "labels": {STAGE_LABEL: stage, ATTEMPT_LABEL: "1"},
            "ownerReferences": [{"kind": "Job", "uid": "job-a1", "controller": True}],
            **meta,
        },
        "spec": {"nodeName": "node-0"},
        "status": status,
    }


async def nodes_read(status: dict[str, Any], pod: dict[str, Any]) -> dict[str, NodeState]:
    """What a pass learns of nodes when the job has this one pod."""
    stored = Stored(status, {})
    stored.objects["pods"]["items"] = [pod]
    stored.objects["nodes/node-0"] = {
        "spec": {"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    observed = await Gatherer(stored, Inventory()).gather(KEY, Memory())
    assert observed is not None
    assert bool(observed.nodes) == any("/nodes/" in path for path in stored.paths)
    return dict(observed.nodes)


@pytest.mark.parametrize(
    "pod",
    [a_raw_pod(KILLED), a_raw_pod({"phase": "Failed"}), a_raw_pod(RUNNING, deletionTimestamp="2026-05-01T12:01:00Z")],
    ids=["killed", "nothing-left", "asked-to-go"],
)
async def test_node_of_a_pod_that_was_killed_or_asked_to_go_is_read_with_its_taints(pod: dict[str, Any]) -> None:
    """They may say who did it."""
    state = NodeState(exists=True, ready=True, taints=frozenset({"karpenter.sh/disrupted"}))
    assert await nodes_read(LIVE, pod) == {"node-0": state}
    assert state.reclaim_taint == "karpenter.sh/disrupted"


@pytest.mark.parametrize(
    ("status", "pod"),
    [
        (LIVE, a_raw_pod(RUNNING)),
        (ENDED, a_raw_pod(KILLED)),
        (ENDED, a_raw_pod(RUNNING, deletionTimestamp="2026-05-01T12:01:00Z")),
        (LIVE, a_raw_pod(KILLED, stage="prepare")),
        (LIVE, a_raw_pod({"phase": "Succeeded"})),
    ],
    ids=["running", "end-is-recorded", "stopped-by-us", "another-stage", "ended-well"],
)
async def test_no_node_is_read_of_a_pod_that_is_not_in_doubt(status: dict[str, Any], pod: dict[str, Any]) -> None:
    """A job that nothing disturbs asks for none."""
    assert await nodes_read(status, pod) == {}
