"""Pod statuses as kubelets write them, for an API server without nodes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from e2e.kubectl import Json, Kubectl, KubectlError, WaitError

DIGEST = "d" * 64

PREPARED = {
    "outcome": "Succeeded",
    "model": {
        "architecture": "LlamaForCausalLM",
        "parameters": 1000,
        "weightBytes": 2000,
        "dtype": "BF16",
        "stagedUri": "file:///mnt/finetune/model/m",
        "digest": DIGEST,
    },
    "dataset": {
        "format": "messages",
        "trainRows": 90,
        "evalRows": 10,
        "trainTokens": 900,
        "evalTokens": 100,
        "longestRowTokens": 20,
        "trainUri": "file:///mnt/finetune/storage/cache/data/d/train.jsonl",
        "evalUri": "file:///mnt/finetune/storage/cache/data/d/eval.jsonl",
        "digest": DIGEST,
    },
}
"""The last words of a prepare pod that found nothing wrong."""

RESULT = {
    "kind": "result",
    "time": "2026-05-01T12:00:00Z",
    "uri": "file:///mnt/finetune/storage/output/ns/quick/r-d",
    "digest": DIGEST,
    "metrics": {"baseEvalLoss": 4.0, "evalLoss": 1.5, "trainLoss": 1.4, "steps": 40},
}
TRAINED = {"outcome": "Succeeded", "exitCode": 0, "step": 40, "result": RESULT}
"""The last words of a rank that trained and published."""


def running_status() -> Json:
    """The container runs."""
    return {"phase": "Running", "containerStatuses": [_container({"running": {"startedAt": _now()}})]}


def ended_status(exit_code: int, message: Json | str = "", reason: str = "") -> Json:
    """The container ended with a code and a termination message."""
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "message": message if isinstance(message, str) else json.dumps(message),
        "startedAt": _now(),
        "finishedAt": _now(),
    }
    phase = "Succeeded" if exit_code == 0 else "Failed"
    return {"phase": phase, "containerStatuses": [_container({"terminated": terminated})]}


def wait_for_pods(kubectl: Kubectl, job: str, count: int, seconds: float = 20) -> list[Json]:
    """The pods that the Job controller made for a Job, by index."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pods = kubectl.list("pods", f"batch.kubernetes.io/job-name={job}")
        if len(pods) >= count:
            return sorted(pods, key=lambda pod: pod["metadata"]["name"])
        time.sleep(0.2)
    raise WaitError(f"Job {job} has no {count} pods after {seconds:.0f} s")


def start_attempt(kubectl: Kubectl, number: int, job: str = "quick") -> list[str]:
    """Wait for the two pods of an attempt and let them run."""
    pods = [pod["metadata"]["name"] for pod in wait_for_pods(kubectl, f"{job}-a{number}", 2)]
    for pod in pods:
        run_pod(kubectl, pod)
    return pods


def run_pod(kubectl: Kubectl, pod: str) -> None:
    """The pod is bound (else a deletion would not wait for its grace period) and its container runs."""
    node = f"node-{pod.split('-')[-2]}"
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}/binding"
    kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    _write(kubectl, pod, running_status())


def end_pod(kubectl: Kubectl, pod: str, exit_code: int, message: Json | str = "", reason: str = "") -> None:
    """The container ended with a code and a termination message."""
    _write(kubectl, pod, ended_status(exit_code, message, reason))


def disrupt_pod(kubectl: Kubectl, pod: str, reason: str = "EvictionByEvictionAPI") -> None:
    """What the eviction API writes before it deletes."""
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": _now()}
    _write(kubectl, pod, {"conditions": [condition]})


def finish_prepare(kubectl: Kubectl, job: str = "quick", message: Json | None = None, exit_code: int = 0) -> None:
    """Let the prepare stage of a job end."""
    (pod,) = wait_for_pods(kubectl, f"{job}-prepare", 1)
    end_pod(kubectl, pod["metadata"]["name"], exit_code, message or PREPARED)


def let_go(kubectl: Kubectl, pod: str) -> None:
    """What the kubelet does at the end of a deletion: the pod object goes."""
    try:
        kubectl.run("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
    except KubectlError as error:
        if "not found" not in str(error):
            raise


def _write(kubectl: Kubectl, pod: str, status: dict[str, Any]) -> None:
    kubectl.patch("pod", pod, {"status": status}, subresource="status")


def _container(state: Json) -> Json:
    return {
        "name": "trainer",
        "image": "localhost/finetune-trainer:dev",
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
