"""``make demo``: a real language model is fine-tuned on two nodes, loses a pod midway, and resumes.

Needs root on Debian 12 or alike; no GPU, no Docker. The cluster stays up afterwards, to look around in.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from e2e.cluster.errors import ClusterError
from e2e.kubectl import Json, KubectlError, WaitError, is_true
from e2e.stack import ROOT, Stack, bring_up

JOB = "quickstart"
CLUSTER = "demo"
TIMEOUT_SECONDS = 900.0


class Timeline:
    """Prints what changes, with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = ""

    def say(self, text: str) -> None:
        """One line, unless it is the last one again."""
        if text != self._last:
            print(f"{time.monotonic() - self._start:7.1f} s  {text}", flush=True)
            self._last = text


def main() -> int:
    """Run the demo; 0 when the job is Complete on attempt 2 and has learnt something."""
    timeline = Timeline()
    try:
        stack = bring_up(CLUSTER)
        timeline.say("cluster with two nodes and the operator is up")
        _start_over(stack)
        stack.kubectl.run("apply", "-f", str(ROOT / "examples" / "quickstart.yaml"))
        timeline.say(f"kubectl apply -f examples/quickstart.yaml   (runtime: {_device(stack)})")
        job = _follow(stack, timeline)
    except (ClusterError, KubectlError, WaitError, RuntimeError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    _report(stack, job)
    if problem := what_went_wrong(job):
        print(f"\ndemo failed: {problem}", file=sys.stderr)
    return 1 if problem else 0


def what_went_wrong(job: Json) -> str:
    """In a sentence; empty: nothing."""
    status = job["status"]
    if not is_true(job, "Complete"):
        return f"the job is not Complete: {status.get('message', '')}"
    if status["totals"]["attempts"] != 2:
        return (
            f"the job took {status['totals']['attempts']} attempts instead of 2, one before and one after the eviction"
        )
    metrics = status["result"]["metrics"]
    before, after = metrics["baseEvalLoss"], metrics["evalLoss"]
    if not after < before:  # said so that NaN is no success
        return f"training did not lower the evaluation loss: {before:.3f} before, {after:.3f} after"
    return ""


def _start_over(stack: Stack) -> None:
    """A second demo must train again, so the first one's job and results go."""
    stack.kubectl.delete("ftj", JOB, wait=True)
    stack.clear_storage()


def _device(stack: Stack) -> str:
    runtime = stack.kubectl.get("ftr", "default")
    return f"device: {runtime['spec']['pools'][0]['device']}"


def _follow(stack: Stack, timeline: Timeline) -> Json:
    """Print the job's own words until it ends; evict rank 1 once attempt 1 has saved a checkpoint."""
    evicted = False
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        job = stack.kubectl.get("ftj", JOB)
        status = job["status"]
        timeline.say(_headline(status))
        if is_true(job, "Complete") or is_true(job, "Failed"):
            return job
        if not evicted and _is_worth_evicting(status):
            (pod,) = _pods(stack, f"{JOB}-a1", index="1")
            node = pod["spec"]["nodeName"]
            stack.kubectl.evict(pod["metadata"]["name"])
            timeline.say(f">>> evicted {pod['metadata']['name']} from {node}, as a drain does")
            evicted = True
        time.sleep(0.5)
    raise WaitError(f"the job did not end within {TIMEOUT_SECONDS:.0f} s")


def _headline(status: Json) -> str:
    progress = status.get("progress") or {}
    numbers = ""
    if progress.get("steps") and status.get("phase") == "Running":
        loss = f", loss {progress['loss']:.3f}" if progress.get("loss") is not None else ""
        numbers = f" [step {progress['steps']}{loss}]"
    return f"{status.get('phase') or 'Pending':<11} {status.get('message', '')}{numbers}"


def _is_worth_evicting(status: Json) -> bool:
    """In the middle of training, with something to resume from."""
    progress = status.get("progress") or {}
    middle = progress.get("step", 0) >= progress.get("totalSteps", 0) / 4 > 0
    return status.get("phase") == "Running" and middle and status.get("checkpoint") is not None


def _pods(stack: Stack, job: str, index: str) -> list[Json]:
    selector = f"batch.kubernetes.io/job-name={job},batch.kubernetes.io/job-completion-index={index}"
    return stack.kubectl.list("pods", selector)


def _report(stack: Stack, job: Json) -> None:
    status = job["status"]
    print("\nattempts")
    for attempt in status["attempts"]:
        print(f"  {_attempt_line(attempt)}")
    if not is_true(job, "Complete"):
        return
    manifest = json.loads(_manifest(stack, status["result"]["uri"]).read_text())
    metrics = status["result"]["metrics"]
    print(f"\nadapter   {status['result']['uri']}")
    print(f"eval loss {metrics['baseEvalLoss']:.3f} before, {metrics['evalLoss']:.3f} after")
    for sample in manifest["samples"]:
        print(f"\n  {sample['prompt']}")
        print(_indented("before", sample["before"]))
        print(_indented("after", sample["after"]))
    print("\nLook around:  export KUBECONFIG=$(.venv/bin/python -m e2e.cluster kubeconfig --name demo)")
    print("              kubectl get ftj; kubectl describe ftj quickstart")
    print("Remove it:    make cluster-down")


def _attempt_line(attempt: dict[str, Any]) -> str:
    end = f"ended by {attempt['cause']} on {attempt.get('node')}" if attempt.get("cause") else "succeeded"
    start = f"from step {attempt['stepFrom']}" if attempt.get("stepFrom") else "from scratch"
    return f"{attempt['number']}: {start} to step {attempt.get('stepTo')}, {end} ({attempt['placement']})"


def _manifest(stack: Stack, uri: str) -> Path:
    """The published manifest, on the folder behind the claim."""
    path = uri.removeprefix("pvc://finetune-storage/")
    return stack.storage / path / "manifest.json"


def _indented(label: str, text: str) -> str:
    lines = text.strip().splitlines() or [""]
    return "\n".join(f"    {label if number == 0 else '':<7} {line}" for number, line in enumerate(lines))


if __name__ == "__main__":
    sys.exit(main())
