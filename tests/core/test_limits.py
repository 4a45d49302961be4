"""Deadlines, time to live, node avoidance, and what attempts cost."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from finetune_operator.core.actions import Sweep
from makers import Story, a_job, a_pod, a_pool, a_result, a_runtime, an_attempt_job, at, last_words, training

pytestmark = pytest.mark.unit

SAVED = {"step": 30, "uri": "file:///mnt/finetune/storage/c", "time": "2026-05-01T12:01:40Z"}


def _preempted(story: Story, number: int, begin: float, end: float) -> None:
    """Attempt ``number`` runs from ``begin`` until it is preempted at ``end``; its pod is gone ten seconds later."""
    job = an_attempt_job(number, creation_time=at(begin))
    pod = a_pod(attempt=number).bound(begin)
    story.sees(at(begin + 5), jobs=(job,), pods=(pod,))
    story.sees(at(end), jobs=(job,), pods=(pod.disrupted("EvictionByEvictionAPI", after=end),))
    story.sees(at(end + 10), pods=(pod.exited(75, after=end + 10),))


# --- activeDeadlineSeconds ----------------------------------------------------------------------------------------


def test_the_deadline_adds_up_over_attempts() -> None:
    """Sixty seconds in the first, forty in the second."""
    story = training(a_job().with_spec(activeDeadlineSeconds=100))
    _preempted(story, 1, 0, 60)
    assert story.status.totals.active_seconds == 60
    second = an_attempt_job(2, creation_time=at(70))
    story.sees(at(100), jobs=(second,), pods=(a_pod(attempt=2),))
    assert (story.status.phase, story.actions.requeue_after) == ("Running", 10)
    story.sees(at(110), jobs=(second,), pods=(a_pod(attempt=2),))
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    assert "apply it with a longer spec.activeDeadlineSeconds" in story.status.message


@pytest.mark.parametrize(
    ("deadline", "placement", "after"), [(None, 60, 60), (40, 60, 40), (80, 60, 60)], ids=["none", "sooner", "later"]
)
def test_a_new_gang_is_looked_at_when_its_time_is_over(deadline: int | None, placement: int, after: int) -> None:
    """Pods that wait for nodes, or for anything else, send no event."""
    job = a_job().with_spec(placement=[{"scheduleTimeoutSeconds": placement}], activeDeadlineSeconds=deadline)
    story = training(job)
    assert "Job/support-a1" in story.created()
    assert story.actions.requeue_after == after


def test_time_in_which_nobody_looked_is_not_the_jobs() -> None:
    """The pod ended after ten minutes; the operator was away for two hours."""
    story = training(a_job().with_spec(activeDeadlineSeconds=7200))
    job = an_attempt_job()
    story.sees(at(5), jobs=(job,), pods=(a_pod().bound(0),))
    ended = a_pod().bound(0).exited(75, after=600, words=last_words(75, checkpoint=SAVED))
    story.sees(at(7300), jobs=(job,), pods=(ended,))
    story.sees(at(7301), pods=(ended,))
    assert "Job/support-a2" in story.created()
    assert (story.status.totals.active_seconds, story.status.attempts[0].gpu_seconds) == (600, 600)


def test_no_attempt_is_created_when_the_deadline_passed_while_the_last_one_ended() -> None:
    """Its pods would be killed at once."""
    story = training(a_job().with_spec(activeDeadlineSeconds=100))
    _preempted(story, 1, 0, 101)
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    assert story.created() == []


QUEUED = replace(a_job().with_spec(activeDeadlineSeconds=100), labels={"kueue.x-k8s.io/queue-name": "q"})


def test_time_in_a_queue_is_not_the_jobs() -> None:
    """Before the Job controller has begun with an admitted Job, nothing runs either."""
    story = training(QUEUED)
    story.sees(at(7000), jobs=(an_attempt_job(is_suspended=True),))
    story.sees(at(7200), jobs=(an_attempt_job(),), pods=(a_pod().pending(),))
    assert (story.status.phase, story.actions.requeue_after) == ("Queued", 1)
    story.sees(at(7201), jobs=(an_attempt_job(start_time=at(7200)),), pods=(a_pod().bound(7200),))
    assert story.status.phase == "Running"


def test_what_a_queue_takes_back_is_added_up() -> None:
    """Forty seconds, then hours in the queue, then sixty."""
    story = training(QUEUED)
    story.sees(at(10), jobs=(an_attempt_job(start_time=at(10)),), pods=(a_pod().bound(10),))
    story.sees(at(50), jobs=(an_attempt_job(is_suspended=True),))
    story.sees(at(9000), jobs=(an_attempt_job(is_suspended=True),))
    assert (story.status.totals.active_seconds, story.status.totals.gpu_seconds) == (40, 40)
    again = an_attempt_job(start_time=at(9000))
    story.sees(at(9059), jobs=(again,), pods=(a_pod().bound(9000),))
    assert story.status.phase == "Running"
    story.sees(at(9060), jobs=(again,), pods=(a_pod().bound(9000),))
    assert story.condition("Failed") == ("True", "DeadlineExceeded")


# --- ttlSecondsAfterFinished --------------------------------------------------------------------------------------


def test_children_are_removed_when_their_time_is_over_and_the_result_stays() -> None:
    """ConfigMaps and Services first, Jobs with their pods last, until it is done."""
    story = training(a_job().with_spec(ttlSecondsAfterFinished=100))
    jobs = (an_attempt_job(is_complete=True),)
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(at(50), jobs=jobs, pods=(pod,))
    story.sees(at(60), jobs=jobs, pods=(pod,))
    assert (story.deleted(), story.actions.requeue_after) == ([], 90)
    story.sees(at(150), jobs=jobs, pods=(pod,))
    assert story.deleted() == ["Job/support-a1"]
    assert story.actions.sweep == (Sweep("prepare"), Sweep("train"))
    story.sees(at(151))
    assert story.condition("Running") == ("False", "ChildrenRemoved")
    story.sees(at(152))
    assert (story.deleted(), story.actions.sweep, story.actions.status) == ([], (), None)
    assert story.status.result is not None


def test_the_time_to_live_of_a_finished_run_can_still_be_changed() -> None:
    """It is not part of the run."""
    story = training(a_job().with_spec(ttlSecondsAfterFinished=10))
    jobs = (an_attempt_job(is_complete=True),)
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(at(50), jobs=jobs, pods=(pod,))
    story.job = story.job.with_spec(ttlSecondsAfterFinished=None)
    story.sees(at(500), jobs=jobs, pods=(pod,))
    assert story.deleted() == []


# --- nodes to keep away from --------------------------------------------------------------------------------------


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


# --- what it costs ------------------------------------------------------------------------------------------------


def test_gpu_time_runs_from_binding_until_the_pods_are_gone() -> None:
    """Two GPUs for 110 s, of which the last 10 s were saved by nothing."""
    runtime = a_runtime(a_pool(pricePerGpuHour=3.6))
    story = training(a_job().on(gpusPerNode=2), runtime)
    job = an_attempt_job(run=story.status.attempts[-1].run)
    pod = a_pod().bound(0).of_run(story.status.attempts[-1].run)
    story.sees(at(5), jobs=(job,), pods=(pod,))
    words = last_words(75, step=31, checkpoint=SAVED)
    story.sees(at(110), jobs=(job,), pods=(pod.exited(75, after=110, words=words),))
    story.sees(at(111), pods=(pod.exited(75, after=110, words=words),))
    first, totals = story.status.attempts[0], story.status.totals
    assert (first.gpu_seconds, first.lost_seconds) == (220, 10)
    assert (totals.gpu_seconds, totals.lost_gpu_seconds, totals.goodput_percent, totals.cost) == (220, 20, 90.9, 0.22)


def test_an_attempt_that_saved_nothing_lost_everything() -> None:
    """From its binding on."""
    story = training()
    _preempted(story, 1, 0, 60)
    first = story.status.attempts[0]
    assert (first.gpu_seconds, first.lost_seconds) == (70, 70)
    assert story.status.totals.goodput_percent == 0.0
    assert story.status.totals.cost is None


def test_a_run_that_completes_at_once_loses_nothing_and_is_settled_in_the_same_write() -> None:
    """No further pass is needed."""
    story = training()
    pod = a_pod().bound(0)
    story.sees(at(5), jobs=(an_attempt_job(),), pods=(pod,))
    done = pod.exited(0, after=95, words=last_words(0, result=a_result()))
    story.sees(at(100), jobs=(an_attempt_job(is_complete=True),), pods=(done,))
    assert (story.status.phase, story.status.attempts[-1].lost_seconds) == ("Complete", 0)
    assert (story.status.totals.gpu_seconds, story.status.totals.goodput_percent) == (95, 100.0)


def test_pods_that_vanish_are_still_accounted_for() -> None:
    """Their binding was noted while they ran."""
    story = training()
    job = an_attempt_job()
    story.sees(at(5), jobs=(job,), pods=(a_pod().bound(0),))
    story.sees(at(60), jobs=(job,), vanished_pods=(a_pod().bound(0).exited(75, after=59).vanished().build(),))
    story.sees(at(61))
    assert story.status.attempts[0].gpu_seconds == 59


def test_out_of_memory_is_planned_anew_without_being_counted() -> None:
    """Half the rows, twice the accumulation; at once."""
    story = training(a_job().with_backoff_limit(0))
    rows = []
    for number in (1, 2, 3):
        assert story.status.plan is not None
        rows.append((story.status.plan.per_device_train_batch_size, story.status.plan.gradient_accumulation_steps))
        story.sees(at(10 * number), jobs=(an_attempt_job(number),), pods=(a_pod(attempt=number).exited(77),))
        story.sees(at(10 * number + 1))
    assert rows == [(4, 4), (2, 8), (1, 16)]
    assert story.status.plan is not None
    assert story.status.plan.gradient_checkpointing
    assert (story.status.totals.replans, story.status.totals.failures) == (3, 0)
    story.sees(at(40), jobs=(an_attempt_job(4),), pods=(a_pod(attempt=4).exited(77),))
    assert story.condition("Failed") == ("True", "BackoffLimitExceeded"), "no plan needs less"


def test_the_fourth_end_for_lack_of_memory_is_counted_and_followed_by_a_safer_plan_all_the_same() -> None:
    """The record says both."""
    story = training(a_job().with_training(perDeviceTrainBatchSize=8).with_backoff_limit(1))
    for number in (1, 2, 3, 4):
        story.sees(at(100 * number), jobs=(an_attempt_job(number),), pods=(a_pod(attempt=number).exited(77),))
        assert "the next one needs less memory" in story.status.message
        story.sees(at(100 * number + 50))
    assert [attempt.replanned for attempt in story.status.attempts[:4]] == [True] * 4
    assert (story.status.totals.replans, story.status.totals.failures) == (4, 1)
    assert story.status.plan is not None
    assert story.status.plan.gradient_checkpointing
