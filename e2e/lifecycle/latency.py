"""From the moment at which the last pod of a gang has ended to the Job of the next one, on a real cluster."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from typing import Any

from e2e.jobs import Jobs
from e2e.kubectl import Kubectl
from e2e.lifecycle.recipes import spec_of

NAME = "latency"


class Watch:
    """When events arrived, by the clock of this machine."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.ended: dict[str, dict[str, float]] = {}
        """Job -> pod -> when it was first seen ended or gone."""
        self.created: dict[str, float] = {}
        """Job -> when it was first seen."""
        self._processes = [self._follow(kubectl, "pods", self._on_pod), self._follow(kubectl, "jobs", self._on_job)]

    def stop(self) -> None:
        """End the watches."""
        for process in self._processes:
            process.terminate()
            process.wait(timeout=10)

    def _follow(self, kubectl: Kubectl, kind: str, on_event: Any) -> subprocess.Popen[str]:
        group = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        query = f"watch=true&labelSelector=finetune-operator.io%2Fjob%3D{NAME}"
        path = f"{group}/namespaces/{kubectl.namespace}/{kind}?{query}"
        command = [kubectl.binary, f"--kubeconfig={kubectl.kubeconfig}", "get", "--raw", path]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=_read, args=(process, on_event), daemon=True).start()
        return process

    def _on_pod(self, event: Any) -> None:
        pod = event["object"]
        job = pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name", "")
        if event["type"] == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed"):
            self.ended.setdefault(job, {}).setdefault(pod["metadata"]["name"], time.monotonic())

    def _on_job(self, event: Any) -> None:
        self.created.setdefault(event["object"]["metadata"]["name"], time.monotonic())


def _read(process: subprocess.Popen[str], on_event: Any) -> None:
    """One event a line."""
    assert process.stdout is not None
    for line in process.stdout:
        on_event(json.loads(line))


def next_attempt_latencies(jobs: Jobs, repetitions: int) -> list[float]:
    """Evict one run so many times; seconds from the end of its last pod to the next Job, each time."""
    watch = Watch(jobs.kubectl)
    try:
        jobs.create(
            NAME,
            runId=str(int(time.time())),
            **spec_of("torch-free", steps=100000),
        )
        for number in range(1, repetitions + 1):
            _wait_for_progress(jobs, number)
            jobs.evict(f"{NAME}-a{number}", 1)
            jobs.pod(f"{NAME}-a{number + 1}", 0, seconds=90)
    finally:
        watch.stop()
        jobs.kubectl.delete("ftj", NAME)
    return [
        round(watch.created[f"{NAME}-a{number + 1}"] - max(watch.ended[f"{NAME}-a{number}"].values()), 2)
        for number in range(1, repetitions + 1)
    ]


def _wait_for_progress(jobs: Jobs, number: int) -> None:
    """Both pods run, and a checkpoint was saved since: an attempt without one would count."""
    for index in (0, 1):
        jobs.wait_until_running(f"{NAME}-a{number}", index)
    saved = (jobs.get(NAME)["status"].get("checkpoint") or {}).get("step", 0)
    jobs.kubectl.wait_for(
        "ftj",
        NAME,
        lambda job: (job["status"].get("checkpoint") or {}).get("step", 0) > saved,
        seconds=60,
        what="a checkpoint",
    )
