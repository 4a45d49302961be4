"""An earlier release is upgraded to this one and rolled back, while two jobs train."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.images import build_image
from e2e.jobs import Jobs
from e2e.kubectl import counts, is_true
from e2e.lifecycle.recipes import Faults, spec_of
from e2e.stack import ROOT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EARLIER = "16954136a0e7877eb54d856f9f79ce584bcfbe25"
"""The commit before placements, drift and accounting came into the API."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier project, as its commit has it."""
    folder = tmp_path_factory.mktemp("earlier")
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{EARLIER}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    if known.returncode:
        pytest.skip(f"this checkout has no history with commit {EARLIER[:7]}: clone the repository in full")
    archive = subprocess.run(["git", "archive", EARLIER], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "--extract", f"--directory={folder}"], input=archive.stdout, check=True)
    return folder


@pytest.fixture(scope="module")
def earlier_stack(stack: Stack, earlier: Path) -> Iterator[Stack]:
    """The cluster with the earlier operator; at the end it has this one again."""
    image = build_image(earlier / "operator" / "Dockerfile", earlier, "localhost/finetune-operator:earlier", {})
    stack.cluster.load_image([image])
    stack.install_operator("image.tag=earlier", chart=earlier / "charts" / "finetune-operator")
    try:
        yield stack
    finally:
        stack.install_operator()


def uids(jobs: Jobs, *names: str) -> dict[str, str]:
    """Pod name -> uid of everything that trains."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for name in names
        for pod in jobs.kubectl.list("pods", f"finetune-operator.io/job={name},finetune-operator.io/stage=train")
        if jobs.is_alive(pod)
    }


def test_two_jobs_train_through_an_upgrade_and_a_rollback(jobs: Jobs, earlier_stack: Stack, faults: Faults) -> None:
    """No pod is replaced by either; the new operator continues what the old one began, and the other way round."""
    stack = earlier_stack
    for name in ("first", "second"):
        faults.hold(name, step=4, attempts=(1, 2))
        jobs.create(name, **spec_of("torch-free", steps=20))
    for name in ("first", "second"):
        jobs.wait_for_checkpoint(name, step=4)
    before = uids(jobs, "first", "second")
    assert len(before) == 4

    stack.install_operator()  # the upgrade
    assert uids(jobs, "first", "second") == before
    upgraded = jobs.kubectl.wait_for(
        "ftj",
        "first",
        lambda job: "SpecDrifted" in json.dumps(job["status"]["conditions"]),
        seconds=60,
        what="new status",
    )
    assert not is_true(upgraded, "SpecDrifted"), "what an earlier version accepted is no edit"
    jobs.kubectl.evict(jobs.pod("first-a1", 1)["metadata"]["name"])
    jobs.wait_until_running("first-a2", 0)
    assert jobs.get("first")["status"]["attempts"][0]["cause"] == "Preempted"

    running = uids(jobs, "first", "second")
    stack.helm("rollback", "finetune-operator", "--namespace=finetune-system", "--wait", "--timeout=120s")
    assert uids(jobs, "first", "second") == running
    jobs.kubectl.evict(jobs.pod("second-a1", 0)["metadata"]["name"])

    for name in ("first", "second"):
        faults.go(name)
        job = jobs.wait_for_end(name, seconds=200)
        assert is_true(job, "Complete"), job["status"]["message"]
        assert counts(job) == (2, {"Preempted": 1}, 0)
