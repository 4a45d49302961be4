"""A log grows with every step; what it costs the API server is bounded by time."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apiserver import SECOND_OPERATOR, ApiServer
from e2e.kubectl import Json, Kubectl
from fake_kubelets import add_nodes
from finetune_operator.config import OperatorConfig
from jobs import a_job
from kubelet_logs import KubeletLogs
from operator_process import OperatorProcess
from pod_status import finish_prepare, start_attempt

PROGRESS_SECONDS = 2.0
WATCHED_SECONDS = 12.0
NODES = ("node-0", "node-1")
"""Where ``start_attempt`` binds the pods."""


def a_growing_log() -> Iterator[str]:
    """A step further whenever somebody looks: as a job does whose steps are shorter than any interval."""
    for step in itertools.count(1):
        progress = {"kind": "progress", "step": step, "totalSteps": 10**6, "epoch": step / 100, "loss": 1 / step}
        yield "".join(json.dumps(line) + "\n" for line in ({"kind": "phase", "phase": "train"}, progress))


@pytest.fixture
def kubelet(kubectl: Kubectl, tmp_path: Path) -> Iterator[KubeletLogs]:
    """That of the nodes on which the gang runs."""
    log = a_growing_log()
    with KubeletLogs(tmp_path, lambda: next(log)) as logs:
        add_nodes(kubectl, NODES, kubelet_port=logs.port)
        yield logs
        kubectl.run("delete", "nodes", *NODES)


@pytest.fixture
def restless_operator(
    api_server: ApiServer, kubectl: Kubectl, operator: OperatorProcess, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """The only one; it looks at its jobs every second, and at their logs every ``PROGRESS_SECONDS``."""
    kubeconfig = tmp_path / "kubeconfig"
    api_server.write_kubeconfig(kubeconfig, user=SECOND_OPERATOR)
    settings = {"RESYNC_SECONDS": "1", "PROGRESS_SECONDS": str(PROGRESS_SECONDS), "NAMESPACES": kubectl.namespace}
    process = OperatorProcess(kubeconfig, tmp_path / "operator.log", settings)
    with ExitStack() as stack:
        operator.stop()
        stack.callback(operator.start)
        stack.callback(process.stop)
        process.start()
        yield process


@pytest.mark.api
@pytest.mark.usefixtures("runtime")
def test_a_log_that_grows_all_the_time_costs_one_status_per_interval(
    api_server: ApiServer, kubectl: Kubectl, restless_operator: OperatorProcess, kubelet: KubeletLogs
) -> None:
    """However often the job is looked at in between."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    start_attempt(kubectl, 1)
    job = kubectl.wait_for("ftj", "quick", lambda job: step_of(job) > 0, seconds=20, what="progress")
    begun, passes, reads = time.monotonic(), passes_of(restless_operator), kubelet.reads

    time.sleep(WATCHED_SECONDS)

    passes, reads = passes_of(restless_operator) - passes, kubelet.reads - reads
    restless_operator.stop()
    most = (time.monotonic() - begun) / PROGRESS_SECONDS + 1
    steps = [step for step in statuses(api_server, kubectl) if step > step_of(job)]
    assert 3 <= len(steps) <= most, steps
    assert steps == sorted(set(steps)), "each of them says something new"
    assert reads <= most
    assert passes > len(steps), "it was looked at in between"


@pytest.mark.unit
def test_progress_is_written_every_thirty_seconds_at_most() -> None:
    """Unless somebody asks for it more often."""
    assert OperatorConfig().progress_seconds == 30


def statuses(api_server: ApiServer, kubectl: Kubectl) -> list[int]:
    """The steps in all statuses that were written."""
    writes = api_server.audit_log.writes(SECOND_OPERATOR, kubectl.namespace)
    return [step_of(write.body) for write in writes if write.resource == "finetunejobs/status"]


def step_of(job: Json) -> int:
    step: int = (job.get("status", {}).get("progress") or {}).get("step", 0)
    return step


def passes_of(operator: OperatorProcess) -> float:
    return operator.metrics().get("finetune_operator_reconcile_seconds_count", 0)
