"""Nodes to keep away from for a while."""

from __future__ import annotations

import json

import pytest

from makers import SAVED, Story, a_job, a_pod, an_attempt_job, at, last_words, training

pytestmark = pytest.mark.unit


def _affinity(story: Story) -> str:
    job = next(item for item in story.actions.create if item["kind"] == "Job")
    return json.dumps(job["spec"]["template"]["spec"]["affinity"].get("nodeAffinity", {}))


def test_the_next_attempt_prefers_other_nodes_than_the_one_that_was_lost() -> None:
    """For half an hour."""
    story = training()
    lost = a_pod().on_node("node-7").disrupted("DeletionByPodGC")
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(lost,))
    assert [node.name for node in story.status.avoided_nodes] == ["node-7"]
    story.sees(at(21))
    assert "node-7" in _affinity(story)
    assert "required" not in _affinity(story)
    saved = last_words(75, checkpoint=SAVED)
    story.sees(at(1900), jobs=(an_attempt_job(2),), pods=(a_pod(attempt=2).exited(75, words=saved),))
    story.sees(at(1901))
    assert _affinity(story) == "{}"


def test_no_more_than_four_nodes_are_avoided() -> None:
    """The oldest are forgiven."""
    story = training(a_job().with_backoff_limit(10))
    for number in range(1, 7):
        lost = a_pod(attempt=number).on_node(f"node-{number}").disrupted("DeletionByPodGC")
        story.sees(at(10 * number), jobs=(an_attempt_job(number),), pods=(lost,))
        story.sees(at(10 * number + 400))
        assert story.status.totals.attempts == number + 1, story.status.message
    assert [node.name for node in story.status.avoided_nodes] == ["node-3", "node-4", "node-5", "node-6"]


def test_the_node_of_a_hang_is_not_avoided() -> None:
    """Whoever reports it first waits for the one that stands still, and that one may be anywhere."""
    story = training(a_job().on(nodes=2))
    run = story.status.attempts[-1].run
    pods = (a_pod(0).of_run(run).exited(78), a_pod(1).of_run(run))
    story.sees(at(20), jobs=(an_attempt_job(run=run),), pods=pods)
    assert story.status.attempts[-1].cause == "Hang"
    assert story.status.avoided_nodes == []


def test_a_reclaimed_node_was_well_until_then() -> None:
    """Its like will be wanted again."""
    story = training()
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod().disrupted("EvictionByEvictionAPI"),))
    assert story.status.avoided_nodes == []
