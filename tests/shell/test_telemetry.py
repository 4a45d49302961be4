"""Metrics and log lines of the running operator, while a job comes and goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.kubectl import Kubectl, is_true
from jobs import a_job
from operator_process import OperatorProcess
from pod_status import TRAINED, end_pod, finish_prepare, start_attempt

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("runtime")]

ENDED_WELL = 'finetune_operator_attempts_ended_total{cause="Succeeded"}'


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def lines_of(log: Path, job: str) -> dict[str, dict[str, Any]]:
    """Message -> line, of one job; every line of the log must be a JSON object."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {line["message"]: line for line in lines if line.get("job") == job}


def test_a_job_shows_in_metrics_while_it_runs_and_in_the_log_for_ever(
    kubectl: Kubectl, operator: OperatorProcess
) -> None:
    """Its end is counted once; the age of its checkpoint ends with it."""
    age = f'finetune_operator_checkpoint_age_seconds{{name="quick",namespace="{kubectl.namespace}"}}'
    gpu_seconds = f'finetune_operator_gpu_seconds_total{{namespace="{kubectl.namespace}"}}'
    wait_until(lambda: ENDED_WELL in operator.metrics(), "the operator serves metrics")
    before = operator.metrics()[ENDED_WELL]
    kubectl.create(a_job())
    finish_prepare(kubectl)
    pods = start_attempt(kubectl, 1)
    wait_until(lambda: operator.metrics().get(age, -1) >= 0, "the job runs and has unsaved work")
    assert operator.metrics()[ENDED_WELL] == before
    time.sleep(1.5)
    for pod in pods:
        end_pod(kubectl, pod, 0, TRAINED)
    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Complete"), seconds=20, what="Complete")

    wait_until(lambda: age not in operator.metrics(), "the series of a job that ended goes")
    metrics = operator.metrics()
    assert metrics[ENDED_WELL] == before + 1
    assert metrics[gpu_seconds] == job["status"]["totals"]["gpuSeconds"] > 0
    lines = lines_of(operator.log, f"{kubectl.namespace}/quick")
    assert "attempt" not in lines["created Job quick-prepare"]
    assert lines["created Job quick-a1"]["attempt"] == 1
