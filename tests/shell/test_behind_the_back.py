"""What somebody does behind the operator's back: to a child, to the CRD, to a whole namespace.

Some cases of ``proof/behind.py``; ``make prove`` plays them all. They have a control plane of their own, because a CRD
takes the jobs of all namespaces along.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kubectl import Kubectl, is_true
from finetune_operator import constants
from jobs import CLAIMS, a_claim, a_job
from operator_process import ROOT, OperatorProcess
from proof.behind import behind_cases
from proof.sweep import Theatre, playing

pytestmark = pytest.mark.api

CHOICE = (
    "preparing-prepare-job-unlabelled",
    "preparing-snapshot-outdated",
    "running-snapshot-disowned",
    "running-snapshot-garbled",
    "running-job-deleted",
    "running-job-orphaning",
    "running-job-unlabelled",
    "running-job-disowned",
    "running-job-suspended",
    "running-job-shrunk",
    "running-pod-0-unlabelled",
    "running-pod-1-forced",
    "suspended-service-disowned",
    "finished-job-deleted",
)
"""Each way of going wrong once."""

CHILDREN = "jobs,pods,services,configmaps"
CRD = f"{constants.JOB_PLURAL}.{constants.GROUP}"


@pytest.fixture(scope="module")
def theatre(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """The control plane with the real scheduler and simulated kubelets; no operator."""
    with playing(tmp_path_factory.mktemp("apiserver"), binaries) as theatre:
        yield theatre


@pytest.fixture
def kubectl(theatre: Theatre, binaries: Path) -> Kubectl:
    """In a namespace that has all claims."""
    return Kubectl(theatre.server.kubeconfig, binaries / "kubectl", "lane-0")


@pytest.fixture
def operator(theatre: Theatre, tmp_path: Path) -> Iterator[OperatorProcess]:
    """A process of the test's own, not started yet, whose log holds no bug."""
    process = OperatorProcess(theatre.server.operator_kubeconfig, tmp_path / "operator.log")
    yield process
    process.stop()
    text = process.log.read_text()
    assert "Traceback" not in text, text[-4000:]


def _start_training(theatre: Theatre, kubectl: Kubectl) -> None:
    """A gang that runs until it is released."""
    theatre.kubelets.hold("quick")
    kubectl.create(a_job(runtimeRef={"name": "proof"}))
    kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Running"), seconds=30, what="Running", every=0.2)


def _wait_until_nothing_is_left(kubectl: Kubectl, kinds: str = CHILDREN) -> None:
    """Of any FineTuneJob of the namespace."""
    deadline = time.monotonic() + 20
    while left := kubectl.list(kinds, constants.JOB_LABEL):
        assert time.monotonic() < deadline, [(item["kind"], item["metadata"]["name"]) for item in left]
        time.sleep(0.2)


def test_child_that_is_deleted_or_edited_costs_an_attempt_at_most(theatre: Theatre) -> None:
    """What each case has to come to is in its table."""
    cases = [case for case in behind_cases() if case.name.removeprefix("behind-") in CHOICE]
    assert len(cases) == len(CHOICE)
    asyncio.run(theatre.run_all(cases))
    assert {case.name: case.problems for case in cases if case.problems} == {}


def test_crd_that_is_deleted_takes_all_along_and_may_come_back(
    theatre: Theatre, kubectl: Kubectl, operator: OperatorProcess
) -> None:
    """The operator stays, and works again when the CRD is back."""
    operator.start()
    _start_training(theatre, kubectl)

    kubectl.run("delete", "crd", CRD, "--timeout=30s")
    _wait_until_nothing_is_left(kubectl)
    assert operator.health() == 200

    kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
    kubectl.run("wait", "--for=condition=Established", "--timeout=30s", "crd", CRD)
    theatre.kubelets.release("quick")
    kubectl.create(a_job(runtimeRef={"name": "proof"}))

    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=30, what="Complete")
    assert job["status"]["totals"]["attempts"] == 1
    assert operator.health() == 200
    kubectl.delete("ftj", "quick")


def test_namespace_that_is_deleted_while_the_operator_is_down_leaves_nothing(
    theatre: Theatre, kubectl: Kubectl, operator: OperatorProcess
) -> None:
    """Nor does the operator go on about it when it is back."""
    kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "doomed"}})
    doomed = kubectl.in_namespace("doomed")
    doomed.create(*(a_claim(claim, volume="proof") for claim in CLAIMS))
    operator.start()
    _start_training(theatre, doomed)
    operator.kill()

    kubectl.run("delete", "namespace", "doomed", "--wait=false")
    operator.start()
    _wait_until_nothing_is_left(doomed, "pods")
    # pods go first, and their controller sleeps for half of their grace period: an edit wakes it
    kubectl.run("annotate", "namespace", "doomed", "example.org/look=again")
    doomed.run("wait", "--for=delete", "--timeout=30s", "ftj/quick")
    _wait_until_nothing_is_left(doomed)
    said = operator.log.read_text().count("doomed")

    theatre.kubelets.release("quick")
    kubectl.create(a_job(runtimeRef={"name": "proof"}))
    kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=30, what="Complete")

    assert operator.log.read_text().count("doomed") == said
    kubectl.delete("ftj", "quick")
