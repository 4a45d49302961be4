"""Sharded gangs on two nodes with checkpoints and results on S3: evicted in the middle, resumed, published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.jobs import JOB_LABEL, Jobs, tiny_training
from e2e.kubectl import Json, condition, counts, is_true
from e2e.lifecycle.recipes import Faults
from e2e.s3.server import ACCESS_KEY, REGION, SECRET_KEY, LocalS3, serving
from e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PORT = 18333
STEPS = 60
RUNTIME = "s3"
SECRET = "s3-credentials"
WRONG_SECRET = "s3-wrong-credentials"


@pytest.fixture(scope="module")
def s3(stack: Stack) -> Iterator[LocalS3]:
    """A server on this machine, a runtime whose pods know where it is, and Secrets as a user makes them."""
    with serving(host="0.0.0.0", port=PORT) as server:
        environment = {
            "AWS_ENDPOINT_URL": f"http://host.finetune.internal:{PORT}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
        }
        # Asks before each step whether to wait: a gang is evicted at the step that a test names, on any machine.
        spec = stack.kubectl.get("ftr", "lifecycle-real")["spec"]
        stack.kubectl.apply(
            {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneRuntime",
                "metadata": {"name": RUNTIME},
                "spec": {
                    **spec,
                    "env": spec["env"] + [{"name": name, "value": value} for name, value in environment.items()],
                },
            },
            a_secret(SECRET, SECRET_KEY),
            a_secret(WRONG_SECRET, "of-somebody-else"),
        )
        yield server


def a_secret(name: str, secret_key: str) -> Json:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": secret_key}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}


@pytest.fixture
def s3_environment(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> LocalS3:
    """So that the store can be read from here."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return s3


def sharded(s3: LocalS3, strategy: str, method: dict[str, Any]) -> dict[str, Any]:
    """One rank on each of two nodes; few rows per step, for every micro-step gathers over the network."""
    return {
        "runtimeRef": {"name": RUNTIME},
        "method": method,
        "distributed": {"strategy": strategy},
        "training": tiny_training(maxSteps=STEPS, globalBatchSize=16),
        "placement": [{"nodes": 2, "gpusPerNode": 1}],
        "checkpoint": {"uri": s3.uri("checkpoints"), "secretRef": {"name": SECRET}, "intervalSeconds": 2},
        "output": {"uri": s3.uri("adapters"), "secretRef": {"name": SECRET}},
    }


def assert_resumed(job: Json, *steps: int) -> None:
    """Each attempt after the first from there. Nobody may have been there to hear the last words of an evicted one."""
    *evicted, last = (attempt.get("stepFrom") for attempt in job["status"]["attempts"])
    assert len(evicted) == len(steps)
    assert last == steps[-1]
    assert all(found in (None, step) for found, step in zip(evicted, (None, *steps), strict=False)), evicted


def test_a_zero3_gang_resumes_from_s3_after_an_eviction(jobs: Jobs, faults: Faults, s3_environment: LocalS3) -> None:
    """Attempt 2 goes on where attempt 1 saved; every step is there once; the adapter can be read from the bucket."""
    s3, name = s3_environment, "lora-zero3"
    faults.hold(name, step=5)
    jobs.create(name, **sharded(s3, "ZeRO3", {"lora": {"r": 4}}))
    faults.wait_until_held(name)
    jobs.evict(f"{name}-a1", 1)

    job = jobs.wait_for_end(name, seconds=330)

    assert is_true(job, "Complete"), job["status"]["message"]
    assert job["status"]["plan"]["strategy"] == "ZeRO3"
    assert counts(job) == (2, {"Preempted": 1}, 0)
    assert_resumed(job, 5)
    assert job["status"]["checkpoint"]["uri"].startswith(s3.uri("checkpoints", "default", name))
    assert claimed_fences(s3, name) == {1, 2}
    assert_the_adapter_is_whole(s3, name, job)
    assert_no_secret_was_told(jobs, name)


def test_an_fsdp_gang_that_is_evicted_twice_ends_on_one_node_with_the_same_global_batch(
    jobs: Jobs, faults: Faults, s3_environment: LocalS3
) -> None:
    """Two nodes until they were interrupted as often as they may be, then one; every step is there once."""
    s3, name = s3_environment, "qlora-fsdp"
    spec = sharded(s3, "FSDP", {"qlora": {"r": 4}})
    spec["placement"] = [{"nodes": 2, "gpusPerNode": 1, "maxInterruptions": 2}, {"nodes": 1, "gpusPerNode": 1}]
    faults.hold(name, step=5, attempts=(1, 2))
    jobs.create(name, **spec)
    for attempt in (1, 2):
        faults.wait_until_held(name)
        plan = jobs.get(name)["status"]["plan"]
        assert (plan["nodes"], plan["strategy"]) == (2, "FSDP")
        jobs.evict(f"{name}-a{attempt}", 1)
        jobs.pod(f"{name}-a{attempt + 1}", 0, seconds=90)
        if attempt == 1:
            faults.hold(name, step=10, attempts=(2,))  # it resumes at 5 and stands there, or has to come to it yet

    job = jobs.wait_for_end(name, seconds=330)

    assert is_true(job, "Complete"), job["status"]["message"]
    assert counts(job) == (3, {"Preempted": 2}, 0)
    assert_resumed(job, 5, 10)
    plan = job["status"]["plan"]
    assert (plan["nodes"], plan["globalBatchSize"]) == (1, 16)
    assert plan["perDeviceTrainBatchSize"] * plan["gradientAccumulationSteps"] == 16
    assert claimed_fences(s3, name) == {1, 2, 3}
    assert_the_adapter_is_whole(s3, name, job)
    assert_no_secret_was_told(jobs, name)


def test_wrong_credentials_end_the_job_before_a_gang_starts(jobs: Jobs, s3: LocalS3) -> None:
    """Prepare meets the refusal when it looks for an earlier result; field, Secret and remedy are named."""
    spec = sharded(s3, "FSDP", {"lora": {"r": 4}})
    jobs.create("wrong-secret", **{**spec, "output": {**spec["output"], "secretRef": {"name": WRONG_SECRET}}})

    job = jobs.wait_for_end("wrong-secret", seconds=120)

    stalled = condition(job, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "UserError")
    assert "spec.output.secretRef" in stalled["message"]
    assert "refuses the credentials" in stalled["message"]
    assert jobs.kubectl.find("job", "wrong-secret-a1") is None


def claimed_fences(s3: LocalS3, name: str) -> set[int]:
    """Of all gangs of the job's only run."""
    from finetune_trainer.store import Store

    paths = Store(s3.uri("checkpoints", "default", name)).list()
    return {int(found[1]) for path in paths if (found := re.search(r"/fence-(\d+)/claim\.json$", path))}


def assert_the_adapter_is_whole(s3: LocalS3, name: str, job: Json) -> None:
    """As a user of the bucket reads it."""
    from safetensors.numpy import load

    from finetune_trainer.store import Store, sha256

    result = job["status"]["result"]
    assert result["uri"].startswith(s3.uri("adapters", "default", name))
    store = Store(result["uri"])
    adapter, log = store.read("adapter_model.safetensors"), store.read("training_log.jsonl")
    assert adapter is not None
    assert log is not None
    assert sha256(adapter) == result["digest"]
    tensors = load(adapter)
    assert any("lora_A" in key for key in tensors)
    assert any(abs(tensor).max() > 0 for key, tensor in tensors.items() if "lora_B" in key)
    lines = [json.loads(line) for line in log.decode().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"]


def assert_no_secret_was_told(jobs: Jobs, name: str) -> None:
    """Values are in the Secret and in the pods' environment, and nowhere that the operator writes."""
    kubectl = jobs.kubectl
    told = [kubectl.get("ftj", name), *kubectl.list("configmaps,jobs,pods,services", f"{JOB_LABEL}={name}")]
    text = json.dumps(told)
    assert any(item["kind"] == "ConfigMap" for item in told)
    assert SECRET_KEY not in text
    assert ACCESS_KEY not in text
