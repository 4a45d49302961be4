"""How quickly the operator answers, against a real API server with the real Job controller: no nodes, no root.

    make bench-operator            # or: python bench/operator_latency.py [--repetitions 20]

Prints as one Markdown table:

- create -> first child: from the start of `kubectl create` to its prepare Job, as a watcher sees it;
- dead -> next: from the start of the `kubectl` that ends the last pod of an attempt to the next attempt's Job;
- memory: resident set of the operator with two live jobs.

Exits with 1 where one of them is above its limit.

Pods end as kubelets would write it (``tests/pod_status.py``), so that the operator's own share is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from apiserver import ApiServer, find_binaries  # noqa: E402
from e2e.kubectl import Json, Kubectl  # noqa: E402
from jobs import CLAIMS, a_claim, a_job, a_runtime  # noqa: E402
from operator_process import OperatorProcess  # noqa: E402
from pod_status import end_pod, finish_prepare, run_pod, wait_for_pods  # noqa: E402
from quantiles import p95  # noqa: E402

MOST_SECONDS_TO_CHILD = 1.0
MOST_SECONDS_TO_NEXT = 2.0
"""Both of the 95th percentile."""
MOST_MEBIBYTES = 120.0


def preempted(attempt: int) -> Json:
    """Each attempt saved a checkpoint further on; without one the operator would wait longer each time."""
    checkpoint = {"step": attempt, "uri": "file:///mnt/finetune/storage/c", "time": "2026-05-01T12:00:00Z"}
    return {"outcome": "Preempted", "exitCode": 75, "step": attempt, "checkpoint": checkpoint}


class JobWatcher:
    """When each Job was first seen, by one ``kubectl get --watch``."""

    def __init__(self, kubectl: Kubectl) -> None:
        command = [kubectl.binary, "-n", kubectl.namespace, "get", "jobs", "--watch", "-o", "name"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
        )
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._seen.setdefault(line.strip().removeprefix("job.batch/"), time.monotonic())
                self._changed.notify_all()

    def time_of(self, job: str, seconds: float = 30) -> float:
        """When the Job appeared; raises ``TimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(lambda: job in self._seen, timeout=seconds):
                raise TimeoutError(f"Job {job} did not appear within {seconds:.0f} s")
            return self._seen[job]

    def close(self) -> None:
        """Stop watching."""
        self._process.terminate()
        self._process.wait(timeout=10)


def first_children(kubectl: Kubectl, watcher: JobWatcher, repetitions: int) -> list[float]:
    """Seconds from create to the prepare Job."""
    delays = []
    for number in range(repetitions):
        name = f"first-{number}"
        begun = time.monotonic()
        kubectl.create(a_job(name))
        delays.append(watcher.time_of(f"{name}-prepare") - begun)
        kubectl.delete("ftj", name)
    return delays


def next_attempts(kubectl: Kubectl, watcher: JobWatcher, repetitions: int) -> list[float]:
    """Seconds from the last pod's end to the next attempt's Job."""
    kubectl.create(a_job())
    finish_prepare(kubectl)
    delays = []
    for number in range(1, repetitions + 1):
        first, second = (pod["metadata"]["name"] for pod in wait_for_pods(kubectl, f"quick-a{number}", 2))
        for pod in (first, second):
            run_pod(kubectl, pod)
        end_pod(kubectl, second, 75, preempted(number))
        begun = time.monotonic()
        end_pod(kubectl, first, 75, preempted(number))
        delays.append(watcher.time_of(f"quick-a{number + 1}") - begun)
    return delays


def row(name: str, delays: list[float], most: float) -> str:
    """One line of the table."""
    ordered = sorted(delays)
    figures = (statistics.median(ordered), p95(ordered), ordered[-1])
    return f"| {name} | {' | '.join(f'{seconds:.2f} s' for seconds in figures)} | {most:.0f} s | {len(ordered)} |"


def main() -> int:
    """Measure and print; 1 when something is above its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    repetitions: int = parser.parse_args().repetitions
    binaries = find_binaries()
    if binaries is None:
        print("no kube-apiserver: run `make binaries`, or set KUBEBUILDER_ASSETS", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        server = ApiServer(Path(folder), binaries)
        operator = OperatorProcess(server.kubeconfig, Path(folder) / "operator.log")
        server.start()
        try:
            kubectl = Kubectl(server.kubeconfig, binaries / "kubectl")
            kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
            kubectl.run("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            kubectl.create(*(a_claim(name) for name in CLAIMS))
            kubectl.create(a_runtime("test"))
            operator.start()
            watcher = JobWatcher(kubectl)
            kubectl.create(a_job("warm-up"))
            watcher.time_of("warm-up-prepare")
            print("| | median | p95 | max | limit of p95 | of |\n|---|---|---|---|---|---|")
            first = first_children(kubectl, watcher, repetitions)
            print(row("create -> first child", first, MOST_SECONDS_TO_CHILD))
            after = next_attempts(kubectl, watcher, repetitions)
            print(row("all pods of an attempt dead -> next attempt's Job", after, MOST_SECONDS_TO_NEXT))
            resident = operator.resident_mebibytes()
            print(f"\noperator, two live jobs: {resident:.0f} MiB resident (limit: {MOST_MEBIBYTES:.0f} MiB)")
            watcher.close()
        finally:
            operator.stop()
            server.stop()
    is_quick = p95(first) <= MOST_SECONDS_TO_CHILD and p95(after) <= MOST_SECONDS_TO_NEXT
    if is_quick and resident <= MOST_MEBIBYTES:
        return 0
    print("above a limit", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
