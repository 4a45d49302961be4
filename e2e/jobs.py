"""FineTuneJobs for end-to-end tests: makers, waits and a look at what they left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from e2e.kubectl import Json, WaitError, is_true
from e2e.stack import Stack

JOB_LABEL = "finetune-operator.io/job"


class Jobs:
    """The FineTuneJobs of one test."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.kubectl = stack.kubectl
        self._names: list[str] = []

    def create(self, name: str, **spec: Any) -> None:
        """A job on the tiny model: two pods on two nodes, deterministic, about half a minute of training."""
        base: dict[str, Any] = {
            "model": {"persistentVolumeClaim": {"claimName": "models", "path": "tiny"}},
            "dataset": {
                "persistentVolumeClaim": {"claimName": "datasets", "path": "tiny.jsonl"},
                "evalFraction": 0.1,
                "maxLength": 128,
            },
            "method": {"lora": {"r": 4}},
            "training": tiny_training(),
            "placement": [{"nodes": 2}],
            "checkpoint": {"intervalSeconds": 2},
        }
        self._names.append(name)
        self.kubectl.create(
            {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": name},
                "spec": {**base, **spec},
            }
        )

    def get(self, name: str) -> Json:
        """The job as it is now."""
        return self.kubectl.get("ftj", name)

    def wait_for_end(self, name: str, seconds: float = 240) -> Json:
        """The job once it is Complete or Failed."""
        return self.kubectl.wait_for(
            "ftj", name, lambda job: is_true(job, "Complete") or is_true(job, "Failed"), seconds=seconds, what="an end"
        )

    def wait_for_checkpoint(self, name: str, step: int = 1, seconds: float = 150) -> Json:
        """The job once attempt 1 trains and has saved at least ``step`` steps."""

        def is_saved(job: Json) -> bool:
            checkpoint = job["status"].get("checkpoint") or {}
            return bool(job["status"].get("phase") == "Running" and checkpoint.get("step", 0) >= step)

        return self.kubectl.wait_for("ftj", name, is_saved, seconds=seconds, what="a checkpoint", every=0.2)

    def pod(self, job: str, index: int, seconds: float = 60) -> Json:
        """The pod with this index of a child Job, once it exists."""
        selector = f"batch.kubernetes.io/job-name={job},batch.kubernetes.io/job-completion-index={index}"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pods = self.kubectl.list("pods", selector)
            if pods:
                return pods[0]
            time.sleep(0.2)
        raise WaitError(f"Job {job} has no pod {index} after {seconds:.0f} s")

    def wait_until_running(self, job: str, index: int, seconds: float = 120) -> Json:
        """The pod once its container runs."""
        name = self.pod(job, index)["metadata"]["name"]
        return self.kubectl.wait_for(
            "pod", name, lambda pod: pod["status"]["phase"] == "Running", seconds=seconds, what="Running", every=0.2
        )

    def wait_until_ended(self, job: str, index: int, seconds: float = 150) -> None:
        """Until the pod's container has ended."""
        name = self.pod(job, index)["metadata"]["name"]
        self.kubectl.wait_for(
            "pod", name, lambda pod: not self.is_alive(pod), seconds=seconds, what="an end", every=0.2
        )

    def evict(self, job: str, index: int) -> None:
        """Ask the pod with this index of a child Job to go."""
        self.kubectl.evict(self.pod(job, index)["metadata"]["name"])

    def last_words(self, job: str, index: int) -> Json:
        """What the pod said when it ended."""
        (container,) = self.pod(job, index)["status"]["containerStatuses"]
        words: Json = json.loads(container["state"]["terminated"]["message"])
        return words

    @staticmethod
    def is_alive(pod: Json) -> bool:
        """Whether anything of it may still run."""
        return pod["status"].get("phase") not in ("Succeeded", "Failed")

    def children(self, name: str) -> list[str]:
        """Kind and name of everything that carries the job's label."""
        items = self.kubectl.list("jobs,pods,services,configmaps", f"{JOB_LABEL}={name}")
        return [f"{item['kind']}/{item['metadata']['name']}" for item in items]

    def output(self, job: Json) -> Path:
        """The folder of the published adapter, on this machine."""
        uri: str = job["status"]["result"]["uri"]
        return self.stack.storage / uri.removeprefix("pvc://finetune-storage/")

    def losses(self, job: Json) -> list[tuple[int, float]]:
        """(step, training loss) of every step of the run, from the published log."""
        lines = (self.output(job) / "training_log.jsonl").read_text().splitlines()
        return [(line["step"], line["loss"]) for line in map(json.loads, lines)]

    def remove_all(self) -> None:
        """Delete the test's jobs."""
        for name in self._names:
            self.kubectl.delete("ftj", name)


def tiny_training(**changes: Any) -> dict[str, Any]:
    """Many small forward passes per step, so that there is time to interrupt."""
    base: dict[str, Any] = {
        "maxSteps": 60,
        "learningRate": 0.005,
        "globalBatchSize": 64,
        "perDeviceTrainBatchSize": 2,
        "precision": "fp32",
        "deterministic": True,
    }
    return {**base, **changes}
