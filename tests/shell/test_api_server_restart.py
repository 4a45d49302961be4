"""The API server dies and comes back, and not everything is as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apiserver import ApiServer, serving
from e2e.kubectl import Kubectl, counts, is_true
from fake_kubelets import FakeKubelets, add_nodes
from jobs import CLAIMS, a_claim, a_job, a_runtime, a_volume
from operator_process import OperatorProcess

pytestmark = pytest.mark.api

DOWN_SECONDS = 2.0


@dataclass(frozen=True)
class Cluster:
    """A control plane of its own, for nobody else is to lose the API server, with an operator."""

    server: ApiServer
    kubectl: Kubectl
    kubelets: FakeKubelets
    operator: OperatorProcess


@pytest.fixture(scope="module")
def cluster(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with simulated kubelets, and the real scheduler."""
    folder = tmp_path_factory.mktemp("restarted")
    with serving(folder, binaries) as server, server.scheduling(), FakeKubelets(server) as kubelets:
        kubectl = Kubectl(server.kubeconfig, binaries / "kubectl")
        add_nodes(kubectl, ("node-1", "node-2"))
        kubectl.create(a_volume("shared"), *(a_claim(name, volume="shared") for name in CLAIMS))
        kubectl.apply(a_runtime("test"))
        operator = OperatorProcess(server.operator_kubeconfig, folder / "operator.log")
        operator.start()
        yield Cluster(server, kubectl, kubelets, operator)
        operator.stop()
        assert "Traceback" not in (folder / "operator.log").read_text()


def restart(server: ApiServer, *forgotten: str) -> None:
    """Away for a moment; meanwhile etcd loses these keys."""
    server.kill_api()
    for key in forgotten:
        server.forget_in_etcd(key)
    time.sleep(DOWN_SECONDS)
    server.start_api()


def test_a_run_goes_on_through_a_restart_of_the_api_server(cluster: Cluster) -> None:
    """Neither the gang nor the operator is started again."""
    cluster.kubelets.hold("steady")
    cluster.kubectl.create(a_job("steady"))
    cluster.kubelets.wait_for_gang(cluster.kubectl, "steady-a1", 2)
    pid = cluster.operator.pid

    restart(cluster.server)
    cluster.kubelets.release("steady")

    job = cluster.kubectl.wait_for("ftj", "steady", lambda job: is_true(job, "Complete"), seconds=30, what="Complete")
    assert counts(job) == (1, {}, 0)
    assert cluster.operator.pid == pid


def test_pods_that_went_while_nobody_could_see_it_are_not_believed_to_run(cluster: Cluster) -> None:
    """No watch ever shows their deletion: what was known about them must not count for more than what is read."""
    cluster.kubelets.hold("haunted")
    cluster.kubectl.create(a_job("haunted"))
    pods = cluster.kubelets.wait_for_gang(cluster.kubectl, "haunted-a1", 2)
    names = [pod["metadata"]["name"] for pod in pods]

    restart(cluster.server, *(f"/registry/pods/default/{name}" for name in names))

    # The Job controller and the scheduler take their time to come back to an API server that was away.
    cluster.kubelets.wait_for_gang(cluster.kubectl, "haunted-a2", 2, seconds=60)
    cluster.kubelets.release("haunted")
    job = cluster.kubectl.wait_for("ftj", "haunted", lambda job: is_true(job, "Complete"), seconds=60, what="Complete")
    attempts, by_cause, failures = counts(job)
    assert (attempts, failures) == (2, 0)
    assert sum(by_cause.values()) == 1, by_cause
