"""Evictions, lost nodes, operator deaths and deletions, on real kubelets."""

from __future__ import annotations

import time
from typing import Any

import pytest

from e2e.jobs import Jobs
from e2e.kubectl import condition, counts, is_true
from e2e.lifecycle.recipes import Faults, spec_of
from e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


QUICK_STEPS = 20
QUICK: dict[str, Any] = spec_of("torch-free", steps=QUICK_STEPS)
HELD: dict[str, Any] = {"runtimeRef": {"name": "lifecycle-real"}}
"""The real trainer, which waits at a step until a test has done something to it."""


def kill_operator(stack: Stack) -> None:
    """Without notice and grace; the Deployment starts another one."""
    for pod in stack.operator_pods():
        stack.system.run("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")


def hold_in_the_middle(faults: Faults, name: str) -> None:
    """Both ranks of attempt 1."""
    faults.hold(name, step=30)


def test_an_evicted_run_has_the_losses_of_an_undisturbed_one(jobs: Jobs, faults: Faults) -> None:
    """Two jobs at once; one loses a pod and resumes; every step's loss is the same to the last bit."""
    hold_in_the_middle(faults, "evicted")
    jobs.create("undisturbed")
    jobs.create("evicted", **HELD)
    faults.wait_until_held("evicted", seconds=150)
    jobs.evict("evicted-a1", 1)

    undisturbed, evicted = jobs.wait_for_end("undisturbed"), jobs.wait_for_end("evicted")

    assert is_true(undisturbed, "Complete"), undisturbed["status"]["message"]
    assert is_true(evicted, "Complete"), evicted["status"]["message"]
    assert undisturbed["status"]["totals"]["attempts"] == 1
    assert counts(evicted) == (2, {"Preempted": 1}, 0)
    first, second = evicted["status"]["attempts"]
    assert (first["cause"], first["rank"]) == ("Preempted", 1)
    assert first.get("exitCode") in (75, None)  # seen, or gone before it could be seen
    assert second["stepFrom"] == 30
    assert [jobs.last_words("evicted-a2", rank)["resumedFromStep"] for rank in (0, 1)] == [30, 30]
    assert jobs.losses(evicted) == jobs.losses(undisturbed)
    assert [step for step, _ in jobs.losses(evicted)] == list(range(1, 61))


def test_a_node_that_dies_under_rank_1_costs_one_attempt(jobs: Jobs, stack: Stack, faults: Faults) -> None:
    """The link is cut and the machine gone; a fresh node takes over; attempt 2 completes."""
    hold_in_the_middle(faults, "node-lost")
    jobs.create("node-lost", **HELD, checkpoint={"intervalSeconds": 0})
    faults.wait_until_held("node-lost", seconds=150)
    node = jobs.pod("node-lost-a1", 1)["spec"]["nodeName"]

    stack.cluster.kill_node(node)
    stack.cluster.add_node(None)
    job = jobs.wait_for_end("node-lost", seconds=300)

    assert is_true(job, "Complete"), job["status"]["message"]
    assert counts(job) == (2, {"NodeLost": 1}, 0)
    assert job["status"]["attempts"][0]["node"] == node
    assert job["status"]["attempts"][1]["stepFrom"] > 0
    stack.kubectl.delete("node", node)


def test_an_operator_killed_during_prepare_train_and_finish_loses_nothing(
    jobs: Jobs, stack: Stack, faults: Faults
) -> None:
    """One attempt, as if nothing had happened."""
    faults.hold("headless", step=4)
    jobs.create("headless", **QUICK)
    jobs.kubectl.wait_for("job", "headless-prepare", lambda _: True, seconds=30, what="prepare", every=0.1)
    kill_operator(stack)
    jobs.wait_for_checkpoint("headless", step=4)
    kill_operator(stack)
    stack.wait_for_operator()
    faults.hold("headless", step=QUICK_STEPS - 1)
    faults.wait_until_held("headless", seconds=60)  # before their last step
    kill_operator(stack)
    with stack.operator_away():  # else the next one might be there before the gang has ended
        faults.go("headless")
        for rank in (0, 1):
            jobs.wait_until_ended("headless-a1", rank)

    job = jobs.wait_for_end("headless")

    assert is_true(job, "Complete"), job["status"]["message"]
    assert counts(job) == (1, {}, 0)


def test_delete_in_the_middle_of_training_leaves_no_child(jobs: Jobs) -> None:
    """Jobs, pods, Services and ConfigMaps go with the FineTuneJob."""
    jobs.create("deleted")
    jobs.wait_until_running("deleted-a1", 0)

    jobs.kubectl.delete("ftj", "deleted")

    deadline = time.monotonic() + 60
    while left := jobs.children("deleted"):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def test_suspend_saves_and_resume_continues(jobs: Jobs, faults: Faults) -> None:
    """No pod while suspended; the next attempt starts at the step that was saved."""
    faults.hold("paused", step=4)
    jobs.create("paused", **QUICK)
    jobs.wait_for_checkpoint("paused", step=4)
    jobs.kubectl.patch("ftj", "paused", {"spec": {"suspend": True}})
    jobs.kubectl.wait_for(
        "ftj",
        "paused",
        lambda job: "resume from the newest checkpoint" in job["status"]["message"],
        seconds=60,
        what="suspended",
    )
    assert not any(jobs.is_alive(pod) for pod in jobs.kubectl.list("pods", "finetune-operator.io/job=paused"))

    jobs.kubectl.patch("ftj", "paused", {"spec": {"suspend": False}})
    job = jobs.wait_for_end("paused")

    assert is_true(job, "Complete"), job["status"]["message"]
    assert counts(job) == (2, {"Suspended": 1}, 0)
    assert job["status"]["attempts"][1]["stepFrom"] >= 4


def test_a_broken_dataset_line_is_named_and_no_training_pod_starts(jobs: Jobs) -> None:
    """Line number, field and remedy; nothing is retried."""
    location = {"persistentVolumeClaim": {"claimName": "datasets", "path": "broken.jsonl"}}
    jobs.create("broken", dataset=location)

    job = jobs.wait_for_end("broken", seconds=90)

    stalled = condition(job, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "UserError")
    assert "spec.dataset" in stalled["message"]
    assert "line 17" in stalled["message"]
    assert jobs.kubectl.find("job", "broken-a1") is None
