"""What the operator writes, from the API server's audit log: not much, nothing for nothing, and never backwards."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiserver import OPERATOR, SECOND_OPERATOR, ApiServer
from e2e.kubectl import Json, Kubectl, WaitError, counts, is_true
from jobs import a_job
from operator_process import OperatorProcess
from pod_status import TRAINED, disrupt_pod, end_pod, finish_prepare, let_go, start_attempt

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("runtime")]

MOST_WRITES = 12
"""Of an undisturbed job, events included, progress excepted."""


def wait_for_completion(kubectl: Kubectl) -> Json:
    return kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")


def complete_a_job(kubectl: Kubectl) -> None:
    """Nothing disturbs it. No kubelet serves a log here, so no progress is written."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    for pod in start_attempt(kubectl, 1):
        end_pod(kubectl, pod, 0, TRAINED)
    wait_for_completion(kubectl)


@pytest.mark.usefixtures("operator")
def test_an_undisturbed_job_costs_few_writes(api_server: ApiServer, kubectl: Kubectl) -> None:
    """Each one costs etcd a transaction and every watcher an event."""
    complete_a_job(kubectl)
    writes = api_server.audit_log.writes(OPERATOR, kubectl.namespace)
    assert {"jobs", "finetunejobs/status", "events"} <= {write.resource for write in writes}
    assert len(writes) <= MOST_WRITES, "\n".join(map(str, writes))


@pytest.fixture
def resyncing_operator(api_server: ApiServer, kubectl: Kubectl, tmp_path: Path) -> Iterator[OperatorProcess]:
    """Looks at every job of the namespace each second."""
    kubeconfig = tmp_path / "kubeconfig"
    api_server.write_kubeconfig(kubeconfig, user=SECOND_OPERATOR)
    settings = {"RESYNC_SECONDS": "1", "NAMESPACES": kubectl.namespace}
    process = OperatorProcess(kubeconfig, tmp_path / "operator.log", settings)
    yield process
    process.stop()


@pytest.mark.usefixtures("operator")
def test_resyncs_of_a_settled_job_write_nothing(
    api_server: ApiServer, kubectl: Kubectl, resyncing_operator: OperatorProcess
) -> None:
    """Neither by an operator that starts anew nor ten looks later."""
    complete_a_job(kubectl)
    before = api_server.audit_log.writes(OPERATOR, kubectl.namespace)
    resyncing_operator.start()
    wait_for_passes(resyncing_operator, 11)
    assert api_server.audit_log.writes(SECOND_OPERATOR, kubectl.namespace) == []
    assert api_server.audit_log.writes(OPERATOR, kubectl.namespace) == before


def wait_for_passes(operator: OperatorProcess, count: int) -> None:
    deadline = time.monotonic() + 40
    while (done := operator.metrics().get("finetune_operator_reconcile_seconds_count", 0)) < count:
        if time.monotonic() > deadline:
            raise WaitError(f"{done:.0f} of {count} passes in 40 s")
        time.sleep(0.5)


def saved(step: int) -> Json:
    """Last words of a pod that was asked to go."""
    checkpoint = {"step": step, "uri": "file:///mnt/finetune/storage/c", "time": "2026-05-01T12:00:00Z"}
    return {"outcome": "Preempted", "exitCode": 75, "step": step, "checkpoint": checkpoint}


def stop_gang(kubectl: Kubectl, pods: list[str], *steps: int) -> None:
    """Each pod saves, says which step, ends and goes."""
    for pod, step in zip(pods, steps, strict=True):
        end_pod(kubectl, pod, 75, saved(step))
    for pod in pods:
        let_go(kubectl, pod)


def test_nothing_ever_goes_backwards(api_server: ApiServer, kubectl: Kubectl, operator: OperatorProcess) -> None:
    """Not in one of all the statuses written: two evictions, a suspension, an operator killed again and again."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    pods = start_attempt(kubectl, 1)
    disrupt_pod(kubectl, pods[1])
    stop_gang(kubectl, pods, 7, 7)

    pods = start_attempt(kubectl, 2)
    operator.kill()
    disrupt_pod(kubectl, pods[0])
    operator.start()
    kubectl.wait_for(
        "ftj", "quick", lambda job: job["status"]["totals"]["byCause"] == {"Preempted": 2}, seconds=20, what="cause"
    )
    stop_gang(kubectl, pods, 15, 5)  # one of them was not told of the newest checkpoint

    pods = start_attempt(kubectl, 3)
    kubectl.patch("ftj", "quick", {"spec": {"suspend": True}})
    kubectl.wait_for("ftj", "quick", lambda job: job["status"]["phase"] == "Suspended", seconds=20, what="Suspended")
    operator.kill()
    stop_gang(kubectl, pods, 6, 3)  # a resumed gang may speak of what it started from
    operator.start()
    kubectl.patch("ftj", "quick", {"spec": {"suspend": False}})

    pods = start_attempt(kubectl, 4)
    operator.kill()
    for pod in pods:
        end_pod(kubectl, pod, 0, TRAINED)
    operator.start()
    assert counts(wait_for_completion(kubectl)) == (4, {"Preempted": 2, "Suspended": 1}, 0)

    writes = api_server.audit_log.writes(OPERATOR, kubectl.namespace)
    bodies = [write.body for write in writes if write.resource == "finetunejobs/status" and write.code == 200]
    versions = [int(body["metadata"]["resourceVersion"]) for body in bodies]
    assert versions == sorted(versions)
    amounts = [amounts_of(body["status"]) for body in bodies]
    for older, newer in itertools.pairwise(amounts):
        assert all(newer.get(name, 0) >= amount for name, amount in older.items()), (older, newer)
    assert {amount["attempts"] for amount in amounts} == {0, 1, 2, 3, 4}
    assert {amount["checkpoint"] for amount in amounts} >= {0, 7, 15}


def amounts_of(status: Json) -> dict[str, float]:
    """Everything in a status that only grows within a run."""
    totals = status.get("totals", {})
    names = ("attempts", "failures", "checkpointStep", "activeSeconds", "gpuSeconds", "lostGpuSeconds")
    return {
        **{name: totals.get(name, 0) for name in names},
        **{f"byCause.{cause}": count for cause, count in totals.get("byCause", {}).items()},
        "checkpoint": (status.get("checkpoint") or {}).get("step", 0),
    }
