"""Credentials: names pass through the operator, values never; each pod gets only what it needs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_operator.builders.attempt import build_attempt
from finetune_operator.builders.prepare import build_prepare
from finetune_operator.core.planner.plan import plan_attempt
from makers import JobMaker, a_job, a_pod, a_runtime, a_snapshot, an_attempt_job, facts, last_words, training

pytestmark = pytest.mark.unit

MARKER = "marker-of-the-secret"
KEYS = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
CHECKPOINT = [f"FINETUNE_CHECKPOINT_{key}" for key in KEYS]
OUTPUT = [f"FINETUNE_OUTPUT_{key}" for key in KEYS]
BOTH = (
    a_job()
    .with_bucket("checkpoint", "s3://finetune/checkpoints", f"{MARKER}-1")
    .with_bucket("output", "s3://adapters/team", f"{MARKER}-2")
)


def _children(job: JobMaker, stage: str, **runtime: Any) -> list[dict[str, Any]]:
    snapshot = a_snapshot(job, a_runtime(**runtime))
    if stage == "prepare":
        return build_prepare(job.build(), snapshot)
    return build_attempt(job.build(), snapshot, facts(), plan_attempt(snapshot, facts()), 1)


def _environment(job: JobMaker, stage: str, **runtime: Any) -> list[dict[str, Any]]:
    container = _children(job, stage, **runtime)[-1]["spec"]["template"]["spec"]["containers"][0]
    env: list[dict[str, Any]] = container["env"]
    return env


def _named(job: JobMaker, stage: str) -> list[str]:
    return [item["name"] for item in _environment(job, stage) if "AWS" in item["name"]]


@pytest.mark.parametrize(
    ("stage", "expected"), [("prepare", OUTPUT), ("train", CHECKPOINT + OUTPUT)], ids=["prepare", "train"]
)
def test_pods_get_the_credentials_of_their_stage(stage: str, expected: list[str]) -> None:
    """prepare looks for a result and never at checkpoints."""
    assert _named(BOTH, stage) == expected


@pytest.mark.parametrize("stage", ["prepare", "train"])
@pytest.mark.parametrize(
    "job",
    [a_job(), a_job().with_bucket("checkpoint", "s3://finetune").with_bucket("output", "s3://adapters")],
    ids=["volumes", "no-secret"],
)
def test_without_a_secret_there_are_no_credentials(job: JobMaker, stage: str) -> None:
    """The cloud may let the pod in by its service account."""
    assert _named(job, stage) == []


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_values_come_from_secrets_alone(stage: str) -> None:
    """Only the session token may be absent."""
    for item in _environment(BOTH, stage):
        if "AWS" not in item["name"]:
            continue
        assert set(item) == {"name", "valueFrom"}
        reference = item["valueFrom"]["secretKeyRef"]
        assert reference["name"] == f"{MARKER}-{1 if item['name'].startswith('FINETUNE_CHECKPOINT_') else 2}"
        assert item["name"].endswith(reference["key"])
        assert reference.get("optional", False) is (reference["key"] == "AWS_SESSION_TOKEN")


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_secret_is_named_nowhere_else(stage: str) -> None:
    """No ConfigMap, no argument, no label, no volume."""
    children = _children(BOTH, stage)
    container = children[-1]["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [item for item in container["env"] if "valueFrom" not in item]
    assert MARKER not in json.dumps(children)


def test_secret_is_not_in_the_status() -> None:
    """Neither while it trains nor at its end."""
    story = training(BOTH)
    run = story.snapshot.digest[:12] if story.snapshot else ""
    words = last_words(1, message="ValueError: x")
    story.sees(jobs=(an_attempt_job(run=run),), pods=(a_pod().of_run(run).exited(1, words=words),))
    assert MARKER not in json.dumps(story.status.to_dict())
    assert MARKER not in json.dumps([event.message for event in story.actions.events])


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_runtime_cannot_replace_credentials(stage: str) -> None:
    """Its env is for all jobs, and is readable; each name is there once."""
    env = [{"name": OUTPUT[0], "value": "open"}, {"name": "AWS_ENDPOINT_URL", "value": "http://store:9000"}]
    environment = _environment(BOTH, stage, env=env)
    names = [item["name"] for item in environment]
    assert len(names) == len(set(names))
    assert "open" not in [item.get("value") for item in environment]
    assert {"name": "AWS_ENDPOINT_URL", "value": "http://store:9000"} in environment
