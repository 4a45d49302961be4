"""The operator as a process of its own, against a real API server, Job controller and garbage collector."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apiserver import ApiServer, find_binaries, serving
from e2e.kubectl import Json, Kubectl
from jobs import CLAIMS, a_claim, a_runtime
from operator_process import OperatorProcess

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The programs of the control plane; without them there is nothing to test."""
    found = find_binaries()
    if found is None:
        pytest.skip("no kube-apiserver: run `python -m e2e.cluster binaries`, or set KUBEBUILDER_ASSETS")
    return found


@pytest.fixture(scope="session")
def api_server(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """etcd, kube-apiserver and kube-controller-manager, with our CRDs."""
    with serving(tmp_path_factory.mktemp("apiserver"), binaries) as server:
        yield server


@pytest.fixture(scope="session")
def new_namespace(api_server: ApiServer, binaries: Path) -> Callable[[], Kubectl]:
    """Each call makes one."""
    root = Kubectl(api_server.kubeconfig, binaries / "kubectl")

    def create() -> Kubectl:
        name = f"test-{next(_numbers)}"
        root.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return root.in_namespace(name)

    return create


@pytest.fixture
def kubectl(new_namespace: Callable[[], Kubectl]) -> Iterator[Kubectl]:
    """A namespace of its own for each test; its jobs go with it, or their gangs would hold the pool for ever."""
    kubectl = new_namespace()
    kubectl.create(*(a_claim(claim) for claim in CLAIMS))
    yield kubectl
    kubectl.run("delete", "finetunejobs", "--all", "--wait=false")


@pytest.fixture(scope="session")
def operator(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all tests; a test that kills it starts it again."""
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    process = OperatorProcess(api_server.operator_kubeconfig, log, {"LOG_FORMAT": "json"})
    process.start()
    yield process
    process.stop()
    text = log.read_text()
    assert "Traceback" not in text, text[-4000:]


@pytest.fixture
def no_other_operator(operator: OperatorProcess) -> Iterator[None]:
    """The one of all tests would write and see what a test's own shall."""
    operator.stop()
    yield
    operator.start()


@pytest.fixture
def runtime(kubectl: Kubectl) -> Json:
    """The runtime ``test``; it outlives the test, as runtimes do."""
    manifest = a_runtime("test")
    kubectl.apply(manifest)
    return manifest
