"""``/healthz`` against a real API server, with watches that work and watches that are silent."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from apiserver import SECOND_OPERATOR, ApiServer
from e2e.kubectl import Kubectl
from faulty_proxy import Fault, faulty_proxy
from jobs import a_job
from operator_process import OperatorProcess
from pod_status import finish_prepare, wait_for_pods

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("runtime", "no_other_operator")]

LIMIT_SECONDS = 3
UNHEALTHY = 500


@pytest.mark.parametrize(
    ("silent", "health"),
    [("nothing", 200), ("finetunejobs", UNHEALTHY), ("jobs", UNHEALTHY), ("pods", UNHEALTHY)],
    ids=["watches work", "no event of FineTuneJobs", "no event of Jobs", "no event of pods"],
)
def test_an_operator_that_does_not_hear_of_its_own_writes_is_not_healthy(
    api_server: ApiServer, kubectl: Kubectl, tmp_path: Path, silent: str, health: int
) -> None:
    """Everything else goes through: it lists, reads and writes, and seems to be well."""
    has_begun = threading.Event()

    def silence(path: str) -> Fault | None:
        if f"/{silent}?" not in path or "watch=true" not in path:
            return None
        has_begun.set()
        return Fault("silent")

    with faulty_proxy(api_server.url) as proxy:
        proxy.inject_by_path(silence)
        kubeconfig, log = tmp_path / "kubeconfig", tmp_path / "operator.log"
        api_server.write_kubeconfig(kubeconfig, user=SECOND_OPERATOR, server=proxy.url)
        settings = {
            "NAMESPACES": kubectl.namespace,
            "WATCH_SECONDS": str(LIMIT_SECONDS),
            "RESYNC_SECONDS": "1",
            "LOG_FORMAT": "json",
        }
        operator = OperatorProcess(kubeconfig, log, settings)
        if silent != "jobs":
            kubectl.create(a_job())
        operator.start()
        try:
            # What was written before a watch began its listing shows: something must be written after.
            assert silent == "nothing" or has_begun.wait(20)
            if silent == "jobs":
                kubectl.create(a_job())
            finish_prepare(kubectl)
            wait_for_pods(kubectl, "quick-a1", 2)
            time.sleep(LIMIT_SECONDS + 2)
            # Asked once: the answer of a healthy operator is kept for ten seconds.
            assert operator.health() == health, log.read_text()[-3000:]
            metrics = operator.metrics()
        finally:
            operator.stop()

    kind = {"finetunejobs": "FineTuneJob", "jobs": "Job", "pods": "Pod"}.get(silent)
    assert (kind is not None) == (f"the watch of {kind}s is silent" in log.read_text())
    assert metrics['finetune_operator_api_requests_total{code="200",verb="update"}'] >= 1
    assert metrics['finetune_operator_api_requests_total{code="201",verb="create"}'] >= 1
    heard = {each: metrics[f'finetune_operator_watch_events_total{{kind="{each}"}}'] for each in ("Job", "Pod")}
    assert [each for each in heard if heard[each] == 0] == ([kind] if kind in heard else [])
