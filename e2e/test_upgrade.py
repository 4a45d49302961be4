"""An earlier release is upgraded to this one and rolled back, while two jobs train."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.images import build_image
from e2e.jobs import Jobs
from e2e.kubectl import counts, is_true
from e2e.lifecycle.recipes import Faults, add_runtime, spec_of
from e2e.stack import ROOT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EARLIER = "16954136a0e7877eb54d856f9f79ce584bcfbe25"
"""The commit before placements, drift and accounting came into the API."""

OLD_TRAINER = "lifecycle-earlier"
"""The runtime whose pods run the earlier trainer."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier project, as its commit has it."""
    folder = tmp_path_factory.mktemp("earlier")
    if git("cat-file", "-e", f"{EARLIER}^{{commit}}").returncode:
        complain_about_history()
    archive = git("archive", EARLIER)
    assert archive.returncode == 0, archive.stderr.decode()
    subprocess.run(["tar", "--extract", f"--directory={folder}"], input=archive.stdout, check=True)
    return folder


def complain_about_history() -> None:
    """A download and a shallow clone know one commit only: nothing to test there, unless it is CI that made it."""
    is_full = git("rev-parse", "--is-shallow-repository").stdout.strip() == b"false"
    words = f"this checkout has no commit {EARLIER[:7]}, from which it is upgraded: git fetch --unshallow"
    if is_full or os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """In this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)


@pytest.fixture(scope="module")
def earlier_stack(stack: Stack, earlier: Path) -> Iterator[Stack]:
    """The cluster with the earlier operator, and a runtime with the earlier trainer; at the end this operator again."""
    image = build_image(earlier / "operator" / "Dockerfile", earlier, "localhost/finetune-operator:earlier", {})
    stack.cluster.load_image([image])
    stack.install_operator("image.tag=earlier", chart=earlier / "charts" / "finetune-operator")
    # What it imports has the same versions today: its code alone makes an old trainer of the image that is there.
    code = stack.models / "earlier"
    shutil.rmtree(code, ignore_errors=True)
    shutil.copytree(earlier / "trainer_image" / "finetune_trainer", code / "finetune_trainer")
    for path in (code, *code.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    add_runtime(stack, OLD_TRAINER, "torch-free", code.name)
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


def trainer_of(jobs: Jobs, stack: Stack, name: str, attempt: int) -> str:
    """``old`` or ``new``: what the ranks of this attempt noted when they met."""
    meeting = stack.storage / "meetings" / f"{jobs.get(name)['metadata']['uid']}-{attempt}"
    found = {path.read_text().startswith("/mnt/finetune/model/earlier/") for path in meeting.glob("trainer-*")}
    assert len(found) == 1, sorted(path.name for path in meeting.iterdir())
    return "old" if found == {True} else "new"


def test_two_jobs_train_through_an_upgrade_and_a_rollback(jobs: Jobs, earlier_stack: Stack, faults: Faults) -> None:
    """No pod is replaced by either; the new operator continues what the old one began, and the other way round.

    The first job, which the new operator resumes, has the old trainer; the second, which the old one resumes, the new.
    """
    stack = earlier_stack
    spec = spec_of("torch-free", steps=20)
    for name, changes in (("first", {"runtimeRef": {"name": OLD_TRAINER}}), ("second", {})):
        faults.hold(name, step=4, attempts=(1, 2))
        jobs.create(name, **{**spec, **changes})
    for name in ("first", "second"):
        jobs.wait_for_checkpoint(name, step=4)
    before = uids(jobs, "first", "second")
    assert len(before) == 4
    assert [trainer_of(jobs, stack, name, 1) for name in ("first", "second")] == ["old", "new"]

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
    jobs.evict("first-a1", 1)
    jobs.wait_until_running("first-a2", 0)
    assert jobs.get("first")["status"]["attempts"][0]["cause"] == "Preempted"

    running = uids(jobs, "first", "second")
    stack.helm("rollback", "finetune-operator", "--namespace=finetune-system", "--wait", "--timeout=120s")
    assert uids(jobs, "first", "second") == running
    jobs.evict("second-a1", 0)

    for name in ("first", "second"):
        faults.go(name)
        job = jobs.wait_for_end(name, seconds=200)
        assert is_true(job, "Complete"), job["status"]["message"]
        assert counts(job) == (2, {"Preempted": 1}, 0)
    assert [trainer_of(jobs, stack, name, 2) for name in ("first", "second")] == ["old", "new"]
