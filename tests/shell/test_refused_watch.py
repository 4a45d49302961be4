"""A watch that the API server refuses once, for whatever reason, is opened again."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from apiserver import SECOND_OPERATOR, ApiServer
from e2e.kubectl import Kubectl, wait_until
from faulty_proxy import Fault, faulty_proxy
from jobs import a_job
from operator_process import OperatorProcess

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("runtime", "no_other_operator")]


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_watch_that_is_refused_once_goes_on(
    api_server: ApiServer, kubectl: Kubectl, tmp_path: Path, status: int
) -> None:
    """A webhook that was away, a role that came late, a server that is busy: the next job is seen."""
    is_open, is_armed = threading.Event(), threading.Event()

    def refuse(path: str) -> Fault | None:
        if "/finetunejobs?" not in path:
            return None
        if is_armed.is_set():
            is_armed.clear()
            return Fault("status", status, body=b'{"kind":"Status","status":"Failure","code":%d}' % status)
        if "watch=true" in path:
            is_open.set()
        return None

    with faulty_proxy(api_server.url) as proxy:
        proxy.inject_by_path(refuse)
        kubeconfig, log = tmp_path / "kubeconfig", tmp_path / "operator.log"
        api_server.write_kubeconfig(kubeconfig, user=SECOND_OPERATOR, server=proxy.url)
        operator = OperatorProcess(kubeconfig, log, {"NAMESPACES": kubectl.namespace})
        operator.start()
        try:
            assert is_open.wait(20), log.read_text()[-3000:]
            time.sleep(1)  # it is passed on a moment after it was asked for
            is_armed.set()
            proxy.cut_all_watches()
            wait_until(lambda: not is_armed.is_set(), 20, "the watch to be refused")
            kubectl.create(a_job())
            kubectl.wait_for("ftj", "quick", lambda job: bool(job["status"].get("phase")), seconds=30, what="a status")
        finally:
            operator.stop()
            print(log.read_text()[-4000:])
