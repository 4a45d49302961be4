"""A FineTuneJob's life as a user sees it through the API."""

from __future__ import annotations

import time

import pytest

from e2e.kubectl import Kubectl, condition, counts, is_true
from jobs import a_job
from operator_process import OperatorProcess
from pod_status import (
    PREPARED,
    RESULT,
    TRAINED,
    disrupt_pod,
    end_pod,
    finish_prepare,
    let_go,
    start_attempt,
    wait_for_pods,
)

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("operator", "runtime")]


def test_a_job_is_prepared_trained_and_complete(kubectl: Kubectl) -> None:
    """From create to Complete, with the result in the status."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    for pod in start_attempt(kubectl, 1):
        end_pod(kubectl, pod, 0, TRAINED)

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")

    status = job["status"]
    assert status["result"]["metrics"]["evalLoss"] == 1.5
    assert status["result"]["uri"] == "pvc://finetune-storage/output/ns/quick/r-d"
    assert counts(job) == (1, {}, 0)
    assert status["progress"]["progressPercentage"] == 100
    assert status["observedGeneration"] == job["metadata"]["generation"]
    assert not is_true(job, "Reconciling")
    assert not is_true(job, "Stalled")


def test_an_evicted_pod_ends_the_attempt_and_the_next_one_follows(kubectl: Kubectl) -> None:
    """Preempted is recorded with node and rank, is not counted, and attempt 2 starts when all pods are gone."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    first, second = start_attempt(kubectl, 1)

    disrupt_pod(kubectl, second)
    kubectl.wait_for(
        "ftj", "quick", lambda job: job["status"]["attempts"][0].get("cause") == "Preempted", seconds=10, what="cause"
    )
    assert kubectl.find("job", "quick-a2") is None  # pods of attempt 1 may still write
    end_pod(kubectl, second, 75, {"outcome": "Preempted", "exitCode": 75, "step": 7})
    end_pod(kubectl, first, 75, {"outcome": "Preempted", "exitCode": 75, "step": 7})
    for pod in (first, second):
        let_go(kubectl, pod)
    for pod in start_attempt(kubectl, 2):
        end_pod(kubectl, pod, 0, TRAINED)

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")
    attempt = job["status"]["attempts"][0]
    assert attempt["rank"] == 1
    assert counts(job) == (2, {"Preempted": 1}, 0)


def test_a_bad_dataset_line_stalls_the_job_with_field_and_remedy(kubectl: Kubectl) -> None:
    """No retry, no training pod, and a message that helps."""
    fault = {
        "field": "spec.dataset",
        "value": "line 17",
        "message": "must be JSON",
        "remedy": "mend the line",
    }
    kubectl.create(a_job())
    finish_prepare(kubectl, message={"outcome": "Failed", "cause": "UserError", "fault": fault}, exit_code=65)

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Failed"), seconds=20, what="Failed")

    stalled = condition(job, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "UserError")
    for part in ("spec.dataset", "line 17", "must be JSON", "mend the line"):
        assert part in stalled["message"]
    assert kubectl.find("job", "quick-a1") is None


def test_a_result_that_was_published_before_is_found_without_training(kubectl: Kubectl) -> None:
    """Delete and apply of a finished job costs a CPU pod and no GPU."""
    kubectl.create(a_job())
    finish_prepare(kubectl, message={**PREPARED, "result": RESULT})

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")

    assert condition(job, "Complete")["reason"] == "ResultFound"
    assert kubectl.find("job", "quick-a1") is None


def wait_until_refused(kubectl: Kubectl, words: str) -> None:
    kubectl.wait_for(
        "ftj",
        "quick",
        lambda job: (
            condition(job, "Reconciling").get("reason") == "ChildRefused"
            and words in condition(job, "Reconciling")["message"]
        ),
        seconds=15,
        what=f"ChildRefused: {words}",
    )


def test_a_child_that_cannot_be_created_is_said_in_the_status(kubectl: Kubectl) -> None:
    """First a namesake is in the way, then a quota; when both are gone, the job goes on by itself."""
    kubectl.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "quick-run"}},
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}},
    )
    limits = {"hard": {"count/jobs.batch": "0"}, "used": {"count/jobs.batch": "0"}}
    # no quota controller runs here that would fill in the status
    kubectl.patch("resourcequota", "small", {"spec": {"hard": limits["hard"]}})
    kubectl.patch("resourcequota", "small", {"status": limits}, subresource="status")
    kubectl.create(a_job())
    wait_until_refused(kubectl, "does not belong to this FineTuneJob")
    kubectl.delete("configmap", "quick-run")
    wait_until_refused(kubectl, "exceeded quota: small")
    kubectl.delete("resourcequota", "small")
    finish_prepare(kubectl)

    job = kubectl.wait_for("ftj", "quick", lambda job: bool(job["status"].get("facts")), seconds=20, what="facts")
    assert condition(job, "Reconciling")["reason"] != "ChildRefused"


def test_suspend_removes_the_pods_and_resume_is_the_next_attempt(kubectl: Kubectl) -> None:
    """Suspended is not a failure and not counted."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    pods = start_attempt(kubectl, 1)

    kubectl.patch("ftj", "quick", {"spec": {"suspend": True}})
    kubectl.wait_for("ftj", "quick", lambda job: job["status"]["phase"] == "Suspended", seconds=10, what="Suspended")
    for pod in pods:
        let_go(kubectl, pod)
    time.sleep(1.5)
    assert kubectl.find("job", "quick-a2") is None
    kubectl.patch("ftj", "quick", {"spec": {"suspend": False}})
    for pod in start_attempt(kubectl, 2):
        end_pod(kubectl, pod, 0, TRAINED)

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")
    assert counts(job) == (2, {"Suspended": 1}, 0)


def test_failures_of_the_job_itself_end_the_run_after_the_backoff_limit(kubectl: Kubectl) -> None:
    """backoffLimit 0: the first traceback is the last, and the pods stay for their logs."""
    kubectl.create(a_job(backoffLimit=0))
    finish_prepare(kubectl)
    first, second = start_attempt(kubectl, 1)
    words = {"outcome": "Failed", "cause": "Application", "exitCode": 1, "message": "ValueError: no such layer"}
    end_pod(kubectl, first, 1, words)
    end_pod(kubectl, second, 76, {"outcome": "Failed", "cause": "PeerLost", "exitCode": 76})

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Failed"), seconds=20, what="Failed")

    assert condition(job, "Failed")["reason"] == "BackoffLimitExceeded"
    assert "ValueError: no such layer" in job["status"]["message"]
    assert job["status"]["attempts"][0]["cause"] == "Application"
    assert kubectl.find("job", "quick-a1") is not None


def test_a_new_run_id_starts_a_fresh_run(kubectl: Kubectl) -> None:
    """The old run's children go; attempt numbers go on."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    pods = start_attempt(kubectl, 1)
    before = kubectl.get("ftj", "quick")["status"]["run"]["digest"]

    kubectl.patch("ftj", "quick", {"spec": {"runId": "second"}})
    for pod in pods:
        let_go(kubectl, pod)
    job = kubectl.wait_for(
        "ftj",
        "quick",
        lambda job: job["status"].get("run", {}).get("id") == "second",
        seconds=20,
        what="second run accepted",
    )
    assert job["status"]["run"]["digest"] != before
    finish_prepare(kubectl)
    assert len(start_attempt(kubectl, 2)) == 2


def test_deleting_the_job_leaves_no_child(kubectl: Kubectl) -> None:
    """Owner references take Jobs, Services and ConfigMaps along."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    pods = start_attempt(kubectl, 1)
    kubectl.delete("ftj", "quick")
    for pod in pods:
        let_go(kubectl, pod)

    deadline = time.monotonic() + 20
    selector = "finetune-operator.io/job=quick"
    while left := kubectl.list("jobs,pods,services,configmaps", selector):
        assert time.monotonic() < deadline, [item["metadata"]["name"] for item in left]
        time.sleep(0.3)


def test_an_operator_killed_in_every_stage_loses_nothing(kubectl: Kubectl, operator: OperatorProcess) -> None:
    """What happened meanwhile is seen afterwards: prepare's end, a disruption, the gang's success."""
    kubectl.create(a_job())
    wait_for_pods(kubectl, "quick-prepare", 1)
    operator.kill()
    finish_prepare(kubectl)
    operator.start()
    first, second = start_attempt(kubectl, 1)
    operator.kill()
    disrupt_pod(kubectl, second)
    for pod in (first, second):
        end_pod(kubectl, pod, 75, {"outcome": "Preempted", "exitCode": 75, "step": 7})
    operator.start()
    pods = start_attempt(kubectl, 2)
    operator.kill()
    for pod in pods:
        end_pod(kubectl, pod, 0, TRAINED)
    operator.start()

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")
    assert counts(job) == (2, {"Preempted": 1}, 0)
    assert kubectl.find("job", "quick-a3") is None
