"""Acceptance: nothing starts before every check passes; then the snapshot fixes what the run is."""

from __future__ import annotations

import json

import pytest

from kstatus import kstatus
from makers import Story, a_job, a_runtime, a_snapshot, accepted

pytestmark = pytest.mark.unit


def test_snapshot_is_taken_and_recorded_in_one_pass() -> None:
    """Created first: a status never speaks of a snapshot that does not exist."""
    story = Story(a_job().with_run("1"))
    story.sees()
    assert story.created()[0] == "ConfigMap/support-run"
    assert story.status.run is not None
    assert (story.status.run.id, story.status.run.digest) == ("1", a_snapshot(a_job().with_run("1")).digest)
    assert story.condition("Accepted") == ("True", "Accepted")
    assert story.events() == []


def test_columns_show_the_plan_from_acceptance_on() -> None:
    """Model, method and nodes, before anything runs."""
    story = Story(a_job().on(nodes=3))
    story.sees()
    assert story.status.plan is not None
    assert (story.status.plan.model, story.status.plan.method, story.status.plan.nodes) == ("tiny", "lora", 3)


def test_snapshot_of_a_pass_that_died_is_taken_over() -> None:
    """Though the spec was edited in between: what was accepted counts."""
    old = a_job().with_lora(r=4)
    story = Story(a_job().with_lora(r=8), a_snapshot(old))
    story.sees()
    assert "ConfigMap/support-run" not in story.created()
    assert story.status.run is not None
    assert story.status.run.digest == a_snapshot(old).digest


def test_a_job_that_waits_for_its_runtime_is_in_progress() -> None:
    """GitOps tools wait for it."""
    story = Story(a_job())
    story.sees(runtime=None)
    assert kstatus(story.status, 1) == "InProgress"
    assert story.condition("Accepted") == ("False", "RuntimeNotFound")
    assert (story.created(), story.actions.requeue_after) == ([], 30)


def test_a_job_that_only_an_edit_mends_has_failed() -> None:
    """GitOps tools say so at once."""
    story = Story(a_job().on(pool="none"))
    story.sees()
    assert kstatus(story.status, 1) == "Failed"
    assert story.condition("Stalled") == ("True", "PoolNotFound")
    assert "'none'" in story.status.message
    (event,) = story.actions.events
    assert event.message == f"did not accept the job: {story.status.message}"


def test_a_refusal_that_lasts_is_written_once() -> None:
    """Every 30 seconds the same is found."""
    story = Story(a_job())
    story.sees(runtime=None)
    story.sees(runtime=None)
    assert story.actions.status is None


def test_a_refusal_is_not_final() -> None:
    """The runtime appears, the run starts."""
    story = Story(a_job())
    story.sees(runtime=None)
    story.sees()
    assert story.condition("Accepted") == ("True", "Accepted")
    assert story.condition("Stalled")[0] == "False"


def test_edits_of_spec_and_runtime_do_not_touch_an_accepted_run() -> None:
    """The prepare Job is built from the snapshot."""
    story = accepted(a_job().with_dataset(maxLength=128))
    story.job = story.job.with_dataset(maxLength=64)
    story.sees(runtime=a_runtime(image="other"))
    config = json.loads(story.actions.create[0]["data"]["config.json"])
    container = story.actions.create[1]["spec"]["template"]["spec"]["containers"][0]
    assert config["maxLength"] == 128
    assert container["image"] == a_runtime().image


def test_a_lost_snapshot_is_taken_again() -> None:
    """The run goes on with its facts and its attempt numbers."""
    story = accepted()
    run = story.status.run
    story.snapshot = None
    story.sees()
    assert story.created()[0] == "ConfigMap/support-run"
    assert story.status.run == run
