"""Gangs and the real scheduler: four nodes with one GPU each, simulated kubelets, everything else as in a cluster."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer
from e2e.kubectl import Json, Kubectl, KubectlError, WaitError, condition, counts, is_true
from fake_kubelets import SAVED_STEPS, FakeKubelets, add_nodes
from jobs import CLAIMS, a_claim, a_job, a_runtime, a_volume
from operator_process import OperatorProcess

pytestmark = pytest.mark.api

PAIRS = int(os.environ.get("GANG_PAIRS", "4"))
"""``make prove-lifecycle`` tries twenty."""
PAIRS_RESULT = os.environ.get("GANG_PAIRS_RESULT")
"""A file for how long each of them took, in JSON."""

NODES = ("gpu-1", "gpu-2", "gpu-3", "gpu-4")
OURS = "finetune-operator.io/job"


def a_pool(name: str, *, nodes: str = "fake", **fields: Any) -> Json:
    """Pods of one GPU; ``nodes`` is the label of the pool's nodes."""
    sizes = {"device": "cuda", "nodes": 4, "gpusPerNode": 1, "cpuPerGpu": 1, "memoryPerGpu": "1Gi"}
    return {**sizes, "name": name, "nodeSelector": {"test/nodes": nodes}, **fields}


def a_gang(name: str, nodes: int = 4, **spec: Any) -> Json:
    """A FineTuneJob with one GPU on each of so many nodes."""
    return a_job(name, **{"runtimeRef": {"name": "gangs"}, "placement": [{"pool": "gpu", "nodes": nodes}], **spec})


# --- the cluster --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer, new_namespace: Callable[[], Kubectl]) -> Iterator[FakeKubelets]:
    """The scheduler, its nodes and the runtime of all gangs."""
    kubectl = new_namespace()
    with api_server.scheduling(), FakeKubelets(api_server) as kubelets:
        add_nodes(kubectl, NODES, **{"test/nodes": "fake"})
        kubectl.create(a_volume("shared"))
        kubectl.apply(a_runtime("gangs", pools=[a_pool("gpu"), a_pool("reclaimed", nodes="none", spot=True)]))
        yield kubelets
        kubectl.run("delete", "nodes", *NODES, "--wait=false")


@pytest.fixture
def kubelets(cluster: FakeKubelets, operator: OperatorProcess) -> FakeKubelets:
    """Those of all nodes, with an operator at work."""
    return cluster


@pytest.fixture
def kubectl(new_namespace: Callable[[], Kubectl], cluster: FakeKubelets) -> Iterator[Kubectl]:
    """A namespace of its own for each test; its jobs hold no node afterwards."""
    yield from a_team(new_namespace)


@pytest.fixture
def other_team(new_namespace: Callable[[], Kubectl], cluster: FakeKubelets) -> Iterator[Kubectl]:
    """A second namespace."""
    yield from a_team(new_namespace)


def a_team(new_namespace: Callable[[], Kubectl]) -> Iterator[Kubectl]:
    kubectl = new_namespace()
    kubectl.create(*(a_claim(claim, volume="shared") for claim in CLAIMS))
    yield kubectl
    kubectl.run("delete", "ftj", "--all", "--wait=false")
    alive = "status.phase!=Succeeded,status.phase!=Failed"
    kubectl.run("wait", "--for=delete", "pods", "--selector", OURS, "--field-selector", alive, "--timeout=30s")


def wait_until_complete(kubectl: Kubectl, *names: str, seconds: int = 30) -> list[Json]:
    """All of them, by one process: in a busy test run these are what costs most."""
    jobs = [f"ftj/{name}" for name in names]
    try:
        text = kubectl.run("wait", "--for=condition=Complete", f"--timeout={seconds}s", "-o", "json", *jobs)
    except KubectlError as error:
        raise WaitError(f"{error}: {[job['status'] for job in kubectl.list('ftj')]}") from error
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        job, end = decoder.raw_decode(text)
        found.append(job)
        text = text[end:]
    return found


def names_of(items: list[Json]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


def uids_of(items: list[Json]) -> list[str]:
    return [item["metadata"]["uid"] for item in items]


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


# --- two gangs want the same nodes --------------------------------------------------------------------------------


@pytest.mark.usefixtures("kubelets")
def test_two_gangs_created_together_never_hold_half_of_the_nodes_each(kubectl: Kubectl) -> None:
    """Pair after pair: each gang finds its nodes at its first attempt."""
    seconds: list[float] = []
    try:
        for number in range(PAIRS):
            begun = time.monotonic()
            pair = (f"left-{number}", f"right-{number}")
            kubectl.create(*(a_gang(name) for name in pair))
            for job in wait_until_complete(kubectl, *pair):
                assert counts(job) == (1, {}, 0), job["status"]
            seconds.append(round(time.monotonic() - begun, 2))
            kubectl.run("delete", "ftj", "--all", "--wait=false")
    finally:
        if PAIRS_RESULT is not None:
            Path(PAIRS_RESULT).write_text(json.dumps({"asked": PAIRS, "seconds": seconds}))


def test_gangs_of_two_operators_that_block_each_other_are_parted_by_their_schedule_timeout(
    kubectl: Kubectl,
    other_team: Kubectl,
    operator: OperatorProcess,
    cluster: FakeKubelets,
    api_server: ApiServer,
    tmp_path: Path,
) -> None:
    """Each operator knows the gangs of one namespace only. A taint sees to it that each gang gets two of four nodes."""
    placement = 2 * [{"pool": "gpu", "nodes": 4, "scheduleTimeoutSeconds": 5}]  # the second one without a pause
    tolerant = a_pool("gpu", tolerations=[{"key": "test/second", "operator": "Exists"}])
    kubectl.apply(a_runtime("tolerant", pools=[tolerant]))
    for node in NODES[2:]:
        kubectl.run("taint", "node", node, "test/second=:NoSchedule")
    operator.stop()
    with ExitStack() as stack:
        stack.callback(operator.start)
        for team in (kubectl, other_team):
            second = OperatorProcess(api_server.kubeconfig, tmp_path / team.namespace, namespace=team.namespace)
            stack.callback(second.stop)
            second.start()
        kubectl.create(a_gang("first", placement=placement))
        cluster.wait_for_gang(kubectl, "first-a1", 2)
        other_team.create(a_gang("second", placement=placement, runtimeRef={"name": "tolerant"}))
        cluster.wait_for_gang(other_team, "second-a1", 2)
        for node in NODES[2:]:
            kubectl.run("taint", "node", node, "test/second-")

        (first,) = wait_until_complete(kubectl, "first", seconds=60)
        (second_job,) = wait_until_complete(other_team, "second", seconds=60)

    causes = [job["status"]["totals"]["byCause"].get("NotScheduled", 0) for job in (first, second_job)]
    assert sum(causes) > 0, "nothing stood in their way"
    assert [job["status"]["totals"]["failures"] for job in (first, second_job)] == [0, 0]


def test_an_operator_that_starts_again_lets_nobody_past_the_gang_that_waits_for_nodes(
    kubectl: Kubectl, kubelets: FakeKubelets, operator: OperatorProcess
) -> None:
    """The line is not stored anywhere; the gang that waits holds its pool again before another one is created."""
    kubectl.run("cordon", "gpu-4")
    kubectl.create(a_gang("waiting"))
    unschedulable(kubectl, "waiting")
    kubectl.create(*(a_gang(name) for name in ("earlier-in-the-alphabet", "later", "z-last")))
    in_line = ("earlier-in-the-alphabet", "later", "z-last")
    for name in in_line:
        wait_for_reason(kubectl, name, "PoolBusy")

    operator.kill()
    # a live field: a status that has seen it was written by the next operator
    for name in ("waiting", *in_line):
        kubectl.patch("ftj", name, {"spec": {"ttlSecondsAfterFinished": 3600}})
    operator.start()
    for name in ("waiting", *in_line):
        kubectl.wait_for(
            "ftj", name, lambda job: job["status"]["observedGeneration"] == 2, seconds=20, what="seen by the next one"
        )
    assert [name for name in in_line if kubectl.find("job", f"{name}-a1")] == []
    assert condition(kubectl.get("ftj", "waiting"), "Running")["reason"] == "Unschedulable"
    kubectl.run("uncordon", "gpu-4")

    for job in wait_until_complete(kubectl, "waiting", *in_line):
        assert counts(job) == (1, {}, 0)


def wait_for_reason(kubectl: Kubectl, name: str, reason: str, seconds: float = 20) -> Json:
    """Why it does not run."""
    return kubectl.wait_for(
        "ftj", name, lambda job: condition(job, "Running").get("reason") == reason, seconds=seconds, what=reason
    )


def unschedulable(kubectl: Kubectl, name: str) -> Json:
    """The scheduler has said no."""
    return wait_for_reason(kubectl, name, "Unschedulable")


# --- placements ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kubelets")
def test_a_pool_without_nodes_is_left_for_the_next_placement(kubectl: Kubectl) -> None:
    """Within the time that it may wait and a little; nothing of it counts as a failure."""
    spot = {"pool": "reclaimed", "nodes": 2, "scheduleTimeoutSeconds": 5}
    kubectl.create(a_gang("quick", placement=[spot, {"pool": "gpu", "nodes": 2}]))

    (job,) = wait_until_complete(kubectl, "quick")

    first, second = job["status"]["attempts"]
    assert first["cause"] == "NotScheduled"
    assert 5 <= (time_of(second["startTime"]) - time_of(first["startTime"])).total_seconds() <= 10
    assert counts(job) == (2, {"NotScheduled": 1}, 0)
    assert job["status"]["plan"]["pool"] == "gpu"


def test_a_placement_that_was_interrupted_too_often_is_left_for_a_smaller_one(
    kubectl: Kubectl, kubelets: FakeKubelets
) -> None:
    """Two nodes twice, then one: the batch of the run stays the same."""
    two = {"pool": "gpu", "nodes": 2, "maxInterruptions": 2}
    kubelets.hold("quick")
    kubectl.create(a_gang("quick", placement=[two, {"pool": "gpu", "nodes": 1}]))
    for attempt in (1, 2):
        pods = kubelets.wait_for_gang(kubectl, f"quick-a{attempt}", 2)
        plan = kubectl.get("ftj", "quick")["status"]["plan"]
        kubectl.evict(names_of(pods)[1])
    kubelets.wait_for_gang(kubectl, "quick-a3", 1)
    kubelets.release("quick")

    (job,) = wait_until_complete(kubectl, "quick")
    assert counts(job) == (3, {"Preempted": 2}, 0)
    now = job["status"]["plan"]
    assert (plan["nodes"], now["nodes"]) == (2, 1)
    assert plan["globalBatchSize"] == now["globalBatchSize"] == 8
    assert job["status"]["checkpoint"]["step"] == 2 * SAVED_STEPS


# --- edits of what a run was accepted with ------------------------------------------------------------------------


def test_an_edit_of_a_running_job_is_accepted_and_not_applied_unless_asked_for(
    kubectl: Kubectl, kubelets: FakeKubelets
) -> None:
    """As a GitOps tool does it: a server-side dry run comes first."""
    job = a_gang("quick", nodes=2)
    kubelets.hold("quick")
    server_side_apply(kubectl, job)
    pods = kubelets.wait_for_gang(kubectl, "quick-a1", 2)
    before = kubectl.get("ftj", "quick")["status"]

    job["spec"]["training"]["learningRate"] = 0.00005
    server_side_apply(kubectl, job, "--dry-run=server")
    server_side_apply(kubectl, job)
    edited = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "SpecDrifted"), seconds=10, what="SpecDrifted")
    assert "training.learningRate" in condition(edited, "SpecDrifted")["message"]
    assert uids_of(kubelets.wait_for_gang(kubectl, "quick-a1", 2)) == uids_of(pods)

    job["spec"]["onChange"] = "Restart"
    server_side_apply(kubectl, job)
    kubelets.wait_for_gang(kubectl, "quick-a2", 2)
    kubelets.release("quick")
    (job,) = wait_until_complete(kubectl, "quick")
    assert job["status"]["run"]["digest"] != before["run"]["digest"]
    assert counts(job) == (2, {"Superseded": 1}, 0)
    assert not is_true(job, "SpecDrifted")
    (config,) = kubectl.list("configmaps", f"{OURS}=quick,finetune-operator.io/attempt=2")
    assert json.loads(config["data"]["config.json"])["training"]["learningRate"] == 0.00005
    assert kubectl.list("configmaps,services", f"{OURS}=quick,finetune-operator.io/attempt=1") == []


def server_side_apply(kubectl: Kubectl, manifest: Json, *options: str) -> None:
    kubectl.run("apply", "--server-side", *options, "-f", "-", stdin=json.dumps(manifest))


def test_a_runtime_that_is_edited_and_deleted_changes_no_running_job(kubectl: Kubectl, kubelets: FakeKubelets) -> None:
    """What was accepted is used for every attempt of the run."""
    kubectl.apply(a_runtime("short-lived", pools=[a_pool("gpu")]))
    kubelets.hold("quick")
    kubectl.create(a_gang("quick", nodes=2, runtimeRef={"name": "short-lived"}))
    pods = kubelets.wait_for_gang(kubectl, "quick-a1", 2)

    kubectl.apply(a_runtime("short-lived", image="localhost/finetune-trainer:next", pools=[a_pool("gpu")]))
    kubectl.delete("finetuneruntime", "short-lived")
    time.sleep(1)
    assert uids_of(kubelets.wait_for_gang(kubectl, "quick-a1", 2)) == uids_of(pods)
    kubectl.evict(names_of(pods)[0])

    resumed = kubelets.wait_for_gang(kubectl, "quick-a2", 2)
    images = {pod["spec"]["containers"][0]["image"] for pod in (*pods, *resumed)}
    assert images == {"localhost/finetune-trainer:dev"}
    kubelets.release("quick")
    wait_until_complete(kubectl, "quick")


# --- limits of time -----------------------------------------------------------------------------------------------


def test_the_deadline_counts_all_attempts(kubectl: Kubectl, kubelets: FakeKubelets) -> None:
    """Neither of the two took as long alone."""
    limit = 6
    kubelets.hold("quick")
    kubectl.create(a_gang("quick", nodes=2, activeDeadlineSeconds=limit))
    pods = kubelets.wait_for_gang(kubectl, "quick-a1", 2)
    time.sleep(2)
    kubectl.evict(names_of(pods)[1])

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Failed"), seconds=20, what="Failed")

    kubelets.release("quick")
    assert condition(job, "Failed")["reason"] == "DeadlineExceeded"
    assert counts(job) == (2, {"Preempted": 1, "DeadlineExceeded": 1}, 0)
    assert limit <= job["status"]["totals"]["activeSeconds"] <= limit + 2
    for attempt in job["status"]["attempts"]:
        assert (time_of(attempt["endTime"]) - time_of(attempt["startTime"])).total_seconds() < limit


@pytest.mark.usefixtures("kubelets")
def test_a_finished_job_outlives_its_children(kubectl: Kubectl) -> None:
    """Only the record of what it was accepted with is left besides."""
    kubectl.create(a_gang("quick", nodes=2, ttlSecondsAfterFinished=2))
    wait_until_complete(kubectl, "quick")
    assert kubectl.list("jobs", OURS), "removed too early"

    deadline = time.monotonic() + 15
    while (left := names_of(kubectl.list("jobs,pods,services,configmaps", OURS))) != ["quick-run"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.3)
    time.sleep(1)
    assert names_of(kubectl.list("jobs,pods,services,configmaps", OURS)) == ["quick-run"]
    job = kubectl.get("ftj", "quick")
    assert is_true(job, "Complete")
    assert job["status"]["phase"] == "Complete"
