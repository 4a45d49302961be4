"""The cluster that end-to-end tests run on: one per test run, by way of the same command that users have.

FTOP_E2E_CLUSTER   its name (default: ftop-e2e); a cluster of that name that is up already is used and left up
FTOP_E2E_KEEP=1    leave the cluster up at the end, for a look at it or for the next run
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.jobs import Jobs
from e2e.lifecycle.recipes import Faults, add_recipes
from e2e.stack import ROOT, Stack, bring_up
from e2e.tiny_model import add_tiny_model

PAUSE = "localhost/pause:1"
"""An image every node has; it holds a busybox, which is enough to test a cluster with."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests run in the order they are written, after everything cheaper."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)


def cluster_command(*words: str, name: str, timeout: float = 900) -> str:
    """Run `python -m e2e.cluster` and return what it prints; its progress stays visible on stderr."""
    command = [sys.executable, "-m", "e2e.cluster", *words, "--name", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class TestCluster:
    """What a test needs: kubectl, and the verbs of the cluster command."""

    __test__ = False

    name: str
    kubeconfig: Path
    binaries: Path

    def __call__(self, *words: str, timeout: float = 900) -> str:
        return cluster_command(*words, name=self.name, timeout=timeout)

    def kubectl(self, *words: str, stdin: str | None = None, timeout: float = 120, check: bool = True) -> str:
        """Run kubectl and return its output."""
        command = [str(self.binaries / "kubectl"), f"--kubeconfig={self.kubeconfig}", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, *words: str) -> dict[str, Any]:
        """One object as JSON; empty when there is none."""
        text = self.kubectl("get", *words, "--ignore-not-found", "-o", "json")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found


def eventually(probe: Callable[[], Any], *, timeout: float = 60, every: float = 0.5) -> Any:
    """The first true answer of `probe`; fails with its last answer when time is up."""
    deadline = time.monotonic() + timeout
    answer = None
    while time.monotonic() < deadline:
        answer = probe()
        if answer:
            return answer
        time.sleep(every)
    return pytest.fail(f"nothing after {timeout:.0f} s; last answer: {answer!r}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[TestCluster]:
    """Two nodes with eight fake GPUs each."""
    if os.geteuid() != 0:
        pytest.skip("a cluster of namespaces needs root: sudo -E make test-e2e")
    name = os.environ.get("FTOP_E2E_CLUSTER", "ftop-e2e")
    known = subprocess.run(
        [sys.executable, "-m", "e2e.cluster", "kubeconfig", "--name", name],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    kubeconfig = Path(cluster_command("up", name=name, timeout=3600))
    binaries = subprocess.run(
        [sys.executable, "-m", "e2e.cluster", "binaries"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=3600,
        check=True,
    )
    yield TestCluster(name, kubeconfig, Path(binaries.stdout.strip()))
    if known.returncode and os.environ.get("FTOP_E2E_KEEP") != "1":
        cluster_command("down", name=name)


@pytest.fixture
def namespace(cluster: TestCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, with its service account there."""
    name = f"t-{abs(hash(request.node.name)) % 10**8}-{int(time.time()) % 10**5}"
    cluster.kubectl("create", "namespace", name)
    eventually(lambda: cluster.get("-n", name, "serviceaccount", "default"), timeout=30)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def stack(cluster: TestCluster) -> Stack:
    """The operator on the cluster, with the demo's model and data, and a tiny model and quick recipes beside them."""
    stack = bring_up(cluster.name)
    stack.clear_storage()
    add_tiny_model(stack)
    add_recipes(stack)
    _add_broken_rows(stack)
    return stack


@pytest.fixture
def jobs(stack: Stack) -> Iterator[Jobs]:
    """Creates FineTuneJobs and removes them at the end of the test."""
    jobs = Jobs(stack)
    yield jobs
    jobs.remove_all()


@pytest.fixture
def faults(stack: Stack) -> Faults:
    """Holds the gangs of quick recipes where a test wants them."""
    return Faults(stack)


def _add_broken_rows(stack: Stack) -> None:
    """The demo's rows, with a line that is not JSON."""
    rows = (ROOT / "examples" / "data" / "harbour.jsonl").read_text().splitlines()
    rows[16] = '{"messages": [{"role": "user", "content": "What is a reef?"}'
    (stack.datasets / "broken.jsonl").write_text("\n".join(rows) + "\n")
