"""Gang after gang: start, follow, record the end, start the next one when the pods are gone."""

from __future__ import annotations

import json

import pytest

from finetune_operator.core.actions import LogSource
from kstatus import is_sound, kstatus
from makers import (
    PodMaker,
    Story,
    a_fault,
    a_job,
    a_pod,
    a_pool,
    a_result,
    a_runtime,
    an_attempt_job,
    at,
    last_words,
    nodes,
    training,
    unrecorded,
)

pytestmark = pytest.mark.unit

TWO = a_job().on(nodes=2)


def _run_of(story: Story) -> str:
    assert story.snapshot is not None
    return story.snapshot.digest[:12]


def _pods(story: Story, *pods: PodMaker) -> tuple[PodMaker, ...]:
    return tuple(pod.of_run(_run_of(story)) for pod in pods)


def _ended(code: int, **termination: object) -> Story:
    """A story whose attempt 1, of one pod, ended at 10 s with this code and whose end was recorded at 20 s."""
    story = training()
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod().exited(code, **termination),))
    return story


# --- start --------------------------------------------------------------------------------------------------------


def test_first_attempt_is_created_and_recorded() -> None:
    """ConfigMap and Service before the Job whose pods need them."""
    story = training(TWO)
    config, service, job = story.created()
    assert config.startswith("ConfigMap/support-a1-")
    assert (service, job) == ("Service/support-a1", "Job/support-a1")
    assert story.status.totals.attempts == 1
    assert story.status.attempts[-1].placement == "default 2x1"
    assert story.events() == ["Starting"]


def test_attempt_of_a_pass_that_died_is_taken_over() -> None:
    """With the Job's own start time. Were it created again, one that somebody deletes meanwhile would have a double."""
    story = unrecorded(training())
    story.sees(at(60), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.created() == []
    assert (story.status.totals.attempts, story.status.attempts[-1].start_time) == (1, at(0))


def test_start_time_is_that_of_the_job() -> None:
    """Times come from API objects."""
    story = training()
    story.sees(jobs=(an_attempt_job(creation_time=at(3)),), pods=(a_pod(),))
    assert story.status.attempts[-1].start_time == at(3)


def test_attempt_whose_job_is_going_is_not_taken_over() -> None:
    """Its name is free again in a moment; the pass is repeated until then."""
    story = unrecorded(training())
    story.sees(at(60), jobs=(an_attempt_job(is_being_deleted=True),))
    assert "Job/support-a1" in story.created()


def test_number_of_an_unrecorded_attempt_whose_job_is_gone_is_left_out() -> None:
    """Its pods would be taken for those of the new attempt."""
    story = unrecorded(training())
    story.sees(pods=(a_pod().exited(75),))
    assert "Job/support-a2" in story.created()
    assert story.status.attempts[-1].number == 2


def test_unrecorded_attempt_after_a_number_that_was_left_out_is_taken_over() -> None:
    """The pods for whose sake it was left out are gone, and nothing else tells of them."""
    story = unrecorded(training())
    story.sees(jobs=(an_attempt_job(2),))
    assert story.created() == []
    assert (story.status.totals.attempts, story.status.attempts[-1].number) == (2, 2)


def test_pods_of_an_unrecorded_attempt_are_waited_for() -> None:
    """They may still write."""
    story = unrecorded(training())
    story.sees(pods=(a_pod().deleted(gone_by=30),))
    assert (story.created(), story.actions.requeue_after) == ([], 1)


# --- follow -------------------------------------------------------------------------------------------------------


def test_gang_that_runs_in_full_is_running() -> None:
    """And its log is followed."""
    story = training(TWO)
    story.sees(jobs=(an_attempt_job(),), pods=_pods(story, a_pod(0), a_pod(1)))
    assert (story.status.phase, story.condition("Running")) == ("Running", ("True", "Training"))
    assert story.actions.follow_log == LogSource("support-a1-0-x", "pod-a1-0")
    assert kstatus(story.status, 1) == "Current"


def test_gang_that_starts_is_queued() -> None:
    """One of two runs: that is no news, and writes nothing."""
    story = training(TWO)
    assert (story.status.phase, story.condition("Running")) == ("Queued", ("False", "Starting"))
    story.sees(jobs=(an_attempt_job(),), pods=_pods(story, a_pod(0), a_pod(1).pending()))
    assert story.actions.status is None


def test_gang_without_a_node_says_what_the_scheduler_says() -> None:
    """The user can act on it."""
    story = training()
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().unschedulable("0/3 nodes: Insufficient nvidia.com/gpu"),))
    assert story.condition("Running") == ("False", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in story.status.message


def test_gang_in_a_queue_is_queued() -> None:
    """``Job.spec.suspend`` belongs to the queue."""
    story = training()
    story.sees(jobs=(an_attempt_job(is_suspended=True),))
    assert (story.status.phase, story.condition("Running")) == ("Queued", ("False", "Queued"))
    assert story.deleted() == []


def test_gang_whose_queue_takes_its_admission_back_is_not_judged() -> None:
    """Its pods save and end; the attempt goes on when it is admitted again."""
    story = training()
    story.sees(jobs=(an_attempt_job(is_suspended=True),), pods=(a_pod().exited(75).deleted(gone_by=40),))
    assert story.status.phase == "Queued"
    assert story.status.attempts[-1].end_time is None


def test_pods_that_ended_before_their_job_was_resumed_are_not_judged() -> None:
    """They linger for a moment; the attempt goes on."""
    story = training()
    story.sees(at(20), jobs=(an_attempt_job(is_suspended=True),), pods=(a_pod().exited(75),))
    story.sees(at(60), jobs=(an_attempt_job(start_time=at(59)),), pods=(a_pod().exited(75),))
    assert story.status.attempts[-1].end_time is None


def test_nothing_is_written_while_the_gang_runs_on() -> None:
    """A pass without news is silent."""
    story = training()
    for _ in range(2):
        story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert (story.actions.status, story.created(), story.deleted()) == (None, [], [])


def test_pod_of_another_job_is_not_heard() -> None:
    """Whatever its labels say."""
    story = training()
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().exited(65, fault=a_fault()).of_job("somebody's"),))
    assert story.status.attempts[-1].end_time is None


# --- complete -----------------------------------------------------------------------------------------------------


def test_gang_that_published_completes_the_run() -> None:
    """With its result, its metrics and where the adapter lies."""
    story = training()
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(pod,))
    assert story.condition("Complete") == ("True", "Trained")
    assert story.condition("Running") == ("False", "Finished")
    assert story.status.result is not None
    assert story.status.result.metrics["evalLoss"] == 1.7
    assert "3.900 -> 1.700" in story.status.message
    assert (story.status.attempts[-1].cause, story.status.totals.by_cause) == ("", {})
    assert story.status.progress is not None
    assert story.status.progress.progress_percentage == 100


def test_gang_whose_pods_all_ended_well_is_complete_before_its_job_says_so() -> None:
    """The Job controller may be slow."""
    story = training(TWO)
    pods = _pods(story, a_pod(0).exited(0, words=last_words(0, result=a_result())), a_pod(1).exited(0))
    story.sees(jobs=(an_attempt_job(),), pods=pods)
    assert story.status.phase == "Complete"


def test_half_a_gang_that_ended_well_is_not_complete() -> None:
    """The other half still publishes."""
    story = training(TWO)
    story.sees(jobs=(an_attempt_job(),), pods=_pods(story, a_pod(0).exited(0), a_pod(1)))
    assert (story.status.phase, story.condition("Running")) == ("Running", ("True", "Training"))


def test_complete_job_without_pods_is_complete() -> None:
    """Only the description is gone; where the result lies is what its pods were told."""
    story = training()
    config = json.loads(story.actions.create[0]["data"]["config.json"])
    story.sees(jobs=(an_attempt_job(is_complete=True),))
    assert story.condition("Complete") == ("True", "Trained")
    folder = config["output"]["uri"].removeprefix("file:///mnt/finetune/storage/")
    assert f"published at pvc://finetune-storage/{folder};" in story.status.message
    assert story.deleted() == []


# --- the end of an attempt ----------------------------------------------------------------------------------------


def test_disruption_is_recorded_and_the_job_deleted() -> None:
    """In this order: the shell writes the status first."""
    story = training(TWO)
    pods = _pods(story, a_pod(0), a_pod(1).disrupted("EvictionByEvictionAPI").deleted(gone_by=40))
    story.sees(at(12), jobs=(an_attempt_job(),), pods=pods)
    record = story.status.attempts[-1]
    assert (record.cause, record.rank, record.node, record.end_time) == ("Preempted", 1, "node-1", at(12))
    assert story.status.totals.by_cause == {"Preempted": 1}
    assert story.status.totals.failures == 0
    assert story.deleted() == ["Job/support-a1"]
    assert (story.status.phase, story.events()) == ("Interrupted", ["Interrupted"])


def test_node_that_is_lost_is_recognised_by_its_state() -> None:
    """Taint manager and not ready."""
    story = training()
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().disrupted("DeletionByTaintManager"),), nodes=nodes(node_0=False))
    assert story.status.attempts[-1].cause == "NodeLost"


def test_lost_node_of_a_spot_pool_was_preempted() -> None:
    """The pool of the plan says so."""
    runtime = a_runtime(a_pool(spot=True))
    story = training(runtime=runtime)
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().disrupted("DeletionByPodGC"),))
    assert story.status.attempts[-1].cause == "Preempted"


def test_job_that_somebody_deleted_is_unknown() -> None:
    """And followed by another attempt."""
    story = training()
    story.sees(pods=(a_pod().deleted(gone_by=30),))
    assert story.status.attempts[-1].cause == "Unknown"
    assert "deleted, or taken from us, by somebody else" in story.status.attempts[-1].message


def test_job_that_somebody_took_from_us_is_deleted_by_what_its_pods_say() -> None:
    """It is in no list any more, for want of our labels or of its owner; its gang would train on beside the next."""
    story = training()
    story.sees(pods=(a_pod(),))
    assert (story.status.attempts[-1].cause, story.status.totals.failures) == ("Unknown", 0)
    story.sees(at(1), pods=(a_pod(),))
    (deletion,) = story.actions.delete
    assert (deletion.kind, deletion.name, deletion.uid) == ("Job", "support-a1", "job-a1")
    assert story.created() == []


def test_pods_that_somebody_took_from_their_job_are_waited_for() -> None:
    """They run on as whoever did it wants, and nothing starts beside them."""
    story = training()
    story.sees()
    story.sees(at(1), loose_pods=(a_pod().build(),))
    assert (story.created(), story.deleted(), story.actions.requeue_after) == ([], [], 1)
    assert "waiting for the end of support-a1-0-x" in story.status.message
    story.sees(at(2))
    assert "Job/support-a2" in story.created()


def test_last_words_leave_step_and_checkpoint() -> None:
    """What the next attempt starts from."""
    checkpoint = {"step": 20, "uri": "file:///mnt/finetune/storage/checkpoints/x"}
    story = _ended(code=75, step=22, checkpoint=checkpoint)
    assert story.status.attempts[-1].step_to == 22
    assert story.status.checkpoint is not None
    assert story.status.checkpoint.step == 20


def test_evidence_that_may_improve_is_waited_for() -> None:
    """Nothing is recorded before."""
    story = training(TWO)
    pods = _pods(story, a_pod(0).exited(76, after=10), a_pod(1))
    story.sees(at(20), jobs=(an_attempt_job(),), pods=pods)
    assert story.status.attempts[-1].end_time is None
    assert story.actions.requeue_after == 80
    assert (story.status.phase, story.condition("Running")) == ("Interrupted", ("False", "Interrupted"))
    assert "pod support-a1-0-x ended with exit code 76; waiting" in story.status.message


def test_pod_that_vanished_is_dated_by_the_condition_that_it_changed() -> None:
    """The gang ran in full until a pass did not see it any more."""
    story = training(TWO)
    story.sees(at(5), jobs=(an_attempt_job(),), pods=_pods(story, a_pod(0), a_pod(1)))
    gap = {"jobs": (an_attempt_job(failed_indexes=frozenset({1})),), "pods": _pods(story, a_pod(0))}
    for now, rest in ((500, 90), (530, 60)):
        story.sees(at(now), **gap)
        assert (story.status.attempts[-1].end_time, story.actions.requeue_after) == (None, rest)
    story.sees(at(590), **gap)
    assert story.status.attempts[-1].cause == "Unknown"


# --- between attempts ---------------------------------------------------------------------------------------------


def test_next_attempt_waits_for_pods_that_may_write() -> None:
    """Until they are terminal or past their grace period."""
    story = _ended(code=75)
    story.sees(at(21), pods=(a_pod().deleted(gone_by=50),))
    assert (story.created(), story.actions.requeue_after) == ([], 29)
    story.sees(at(50), pods=(a_pod().deleted(gone_by=50),))
    assert "Job/support-a2" in story.created()
    assert story.condition("Running") == ("False", "Resuming")


def test_job_that_is_still_there_is_deleted_again() -> None:
    """The pass that recorded the end died before it."""
    story = _ended(code=75)
    story.sees(at(21), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.deleted() == ["Job/support-a1"]
    assert story.created() == []


def test_next_attempt_waits_until_the_job_of_the_last_one_is_gone() -> None:
    """It has no pods and may still make some: its controller was slow, or a queue held it back."""
    story = _ended(code=75)
    story.sees(at(21), jobs=(an_attempt_job(),))
    assert (story.created(), story.deleted(), story.actions.requeue_after) == ([], ["Job/support-a1"], 1)
    story.sees(at(22))
    assert "Job/support-a2" in story.created()


def test_exit_code_that_is_seen_late_is_filled_in() -> None:
    """A disruption is recorded before the pod has ended."""
    story = training()
    story.sees(at(11), jobs=(an_attempt_job(),), pods=(a_pod().disrupted("EvictionByEvictionAPI"),))
    assert story.status.attempts[-1].exit_code is None
    checkpoint = {"step": 30, "uri": "file:///mnt/finetune/storage/c"}
    story.sees(at(13), pods=(a_pod().exited(75, words=last_words(75, step=31, checkpoint=checkpoint)),))
    first = story.status.attempts[0]
    assert (first.cause, first.exit_code, first.step_to) == ("Preempted", 75, 31)
    assert story.status.checkpoint is not None
    assert story.status.checkpoint.step == 30


def test_failure_of_the_job_itself_waits() -> None:
    """Ten seconds and a little after its end was seen; the message says until when."""
    story = _ended(code=1, message="ValueError: x")
    story.sees(at(21), pods=(a_pod().exited(1),))
    wait = story.actions.requeue_after
    assert story.created() == []
    assert wait is not None
    assert 9 <= wait <= 11.5
    assert story.condition("Running") == ("False", "BackingOff")
    assert "the next one starts at 12:00:3" in story.status.message
    story.sees(at(22 + wait), pods=(a_pod().exited(1),))
    assert "Job/support-a2" in story.created()
    assert story.status.totals.failures == 1


def test_numbers_go_on_and_the_list_stays_short() -> None:
    """Ten records, all counts."""
    story = training()
    for number in range(1, 15):
        saved = last_words(75, checkpoint={"step": number, "uri": "file:///mnt/finetune/storage/c"})
        end = a_pod(attempt=number).exited(75, words=saved)
        story.sees(at(1000 * number), jobs=(an_attempt_job(number),), pods=(end,))
        story.sees(at(1000 * number + 400))
    assert story.status.totals.attempts == 15
    assert [record.number for record in story.status.attempts] == list(range(6, 16))
    assert story.status.totals.by_cause == {"Preempted": 14}


# --- giving up ----------------------------------------------------------------------------------------------------


def _give_up(code: int = 65, *, peer: PodMaker | None = None) -> Story:
    story = training(TWO.with_backoff_limit(0))
    pods = _pods(story, a_pod(0).exited(code, fault=a_fault()), peer or a_pod(1).exited(76))
    story.sees(at(20), jobs=(an_attempt_job(),), pods=pods)
    story.sees(at(21), jobs=(an_attempt_job(),), pods=pods)
    return story


@pytest.mark.parametrize(("code", "reason"), [(65, "UserError"), (78, "BackoffLimitExceeded")], ids=["user", "limit"])
def test_run_that_is_given_up_says_why(code: int, reason: str) -> None:
    """Failed and Stalled, with the remedy."""
    story = _give_up(code)
    assert story.condition("Failed") == story.condition("Stalled") == ("True", reason)
    assert kstatus(story.status, 1) == "Failed"
    assert "spec.runId" in story.status.message
    assert "line 7 has no answer" in story.status.message


def test_job_of_a_run_that_is_given_up_stays_for_its_logs() -> None:
    """All its pods have ended, so it costs nothing."""
    assert _give_up().deleted() == []


def test_job_of_a_run_that_is_given_up_goes_while_peers_live() -> None:
    """They would wait, or hold a node, for nothing; again and again until it is gone."""
    story = _give_up(peer=a_pod(1).pending())
    assert story.deleted() == ["Job/support-a1"]
    assert story.actions.status is None


def test_job_of_a_run_that_is_given_up_does_not_wait_in_a_queue() -> None:
    """It would start when it is admitted."""
    story = _give_up()
    story.sees(at(22), jobs=(an_attempt_job(is_suspended=True),))
    assert story.deleted() == ["Job/support-a1"]


@pytest.mark.parametrize("code", [1, 64, 65, 75, 76, 77, 78, 79, 137, 143])
def test_no_end_leaves_contradicting_conditions(code: int) -> None:
    """Whatever the code."""
    story = _ended(code=code)
    assert is_sound(story.status)


def test_configuration_is_the_same_but_for_the_attempt() -> None:
    """Same data, same seed, same folders: it resumes."""
    story = training()
    first = json.loads(story.actions.create[0]["data"]["config.json"])
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod().exited(75),))
    story.sees(at(21))
    second = json.loads(story.actions.create[0]["data"]["config.json"])
    changed = {key for key in first if first[key] != second[key]}
    assert changed == {"attempt", "topology"}
    assert second["topology"]["masterAddress"] == "support-a2-0.support-a2"


# --- what somebody else deletes -----------------------------------------------------------------------------------


def test_a_gang_that_published_is_complete_although_its_job_is_being_deleted() -> None:
    """By a hand that knew nothing of it."""
    story = training()
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(at(20), jobs=(an_attempt_job(is_being_deleted=True),), pods=(pod,))
    assert story.condition("Complete") == ("True", "Trained")


def test_what_a_pod_said_counts_although_its_job_is_gone() -> None:
    """The user's mistake stays the user's."""
    story = training()
    story.sees(at(20), pods=(a_pod().exited(65, fault=a_fault()),))
    assert story.condition("Failed") == ("True", "UserError")


def test_a_gang_that_published_is_not_suspended() -> None:
    """All of its pods have ended well; the Job does not say so yet."""
    story = training()
    story.job = story.job.suspended()
    pod = a_pod().exited(0, words=last_words(0, result=a_result()))
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(pod,))
    assert story.condition("Complete") == ("True", "Trained")


def test_the_end_of_a_grace_period_is_looked_for() -> None:
    """A dead node confirms nothing, and no event comes."""
    story = training()
    story.sees(at(10), jobs=(an_attempt_job(),), pods=(a_pod().deleted(gone_by=40),))
    assert story.actions.requeue_after == 30


def test_a_container_that_always_ends_without_a_word_does_not_run_for_ever() -> None:
    """Say, an image without the trainer: nobody is blamed, but from the third time on it counts."""
    story = training(a_job().with_backoff_limit(1))
    for number in range(1, 9):
        begin = at(1000 * number)
        pod = a_pod(attempt=number).exited(127, after=1000 * number)
        story.sees(begin, jobs=(an_attempt_job(number, creation_time=begin),), pods=(pod,))
        if story.status.phase == "Failed":
            break
        story.sees(at(1000 * number + 500))
    assert story.condition("Failed") == ("True", "BackoffLimitExceeded")
    assert [each.cause for each in story.status.attempts] == ["Unknown"] * 4
    for word in ("exit code 127", "the log of the last attempt's pods", "spec.runId"):
        assert word in story.status.message
