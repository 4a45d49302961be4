"""Where the next attempt goes."""

from __future__ import annotations

import pytest

from finetune_operator.api.status import PlacementStatus
from finetune_operator.constants import Cause
from finetune_operator.core import placement_policy
from finetune_operator.core.planner.placement import Candidate, candidates
from makers import Story, a_job, a_pod, a_pool, a_runtime, a_snapshot, an_attempt_job, at, training, unrecorded

pytestmark = pytest.mark.unit

RUNTIME = a_runtime(
    a_pool("spot", spot=True, nodeSelector={"kind": "spot"}), a_pool("on-demand", nodeSelector={"kind": "od"})
)
FALLBACK = a_job().with_spec(
    placement=[
        {"pool": "spot", "nodes": 2, "maxInterruptions": 2, "scheduleTimeoutSeconds": 60},
        {"pool": "on-demand", "nodes": 1, "scheduleTimeoutSeconds": 60},
    ]
)


def _candidates() -> list[Candidate]:
    return candidates(RUNTIME, FALLBACK.spec().placement)


def _interrupted_at_11() -> tuple[Story, str]:
    """A story whose gang was preempted, and the pool that it will want again."""
    story = training(FALLBACK, RUNTIME)
    pool = story.actions.waits_for_nodes
    assert pool is not None
    run = _run_of(story)
    ends = (a_pod(0).of_run(run).exited(75), a_pod(1).of_run(run).exited(75))
    story.sees(at(11), jobs=(an_attempt_job(run=run),), pods=ends)
    return story, pool


def _run_of(story: Story) -> str:
    assert story.snapshot is not None
    return story.snapshot.digest[:12]


# --- the policy ---------------------------------------------------------------------------------------------------


def test_a_placement_is_left_when_it_was_interrupted_as_often_as_it_may() -> None:
    """Spot twice, then on-demand, which has no limit."""
    state = PlacementStatus()
    for expected in (0, 1, 1, 1):
        state = placement_policy.after_end(state, Cause.PREEMPTED, _candidates())
        assert state.candidate == expected


@pytest.mark.parametrize("cause", [Cause.APPLICATION, Cause.OUT_OF_MEMORY, Cause.SUSPENDED, Cause.HANG])
def test_what_is_not_the_placements_fault_does_not_count_against_it(cause: str) -> None:
    """The next attempt goes to the same nodes."""
    state = PlacementStatus(interruptions=1)
    assert placement_policy.after_end(state, cause, _candidates()) == state


def test_gangs_without_nodes_go_round_and_pause_longer_after_each_round() -> None:
    """At once to the next placement; after the last one a while."""
    state, pauses = PlacementStatus(), []
    for _ in range(6):
        state = placement_policy.after_end(state, Cause.NOT_SCHEDULED, _candidates())
        pauses.append((state.candidate, placement_policy.pause(state, jitter=0.5)))
    assert pauses == [(1, 0), (0, 10), (1, 0), (0, 20), (1, 0), (0, 40)]


def test_gangs_that_failed_together_do_not_come_back_together() -> None:
    """From a half to one and a half of the pause."""
    state = PlacementStatus(rounds=1)
    assert (placement_policy.pause(state, 0.0), placement_policy.pause(state, 0.999)) == (5, pytest.approx(15, 0.01))


def test_a_placement_without_a_pool_stands_for_all_that_are_large_enough() -> None:
    """In the order of their prices."""
    runtime = a_runtime(a_pool("dear", pricePerGpuHour=3), a_pool("tiny", nodes=1), a_pool("cheap", pricePerGpuHour=1))
    found = candidates(runtime, a_job().on(nodes=2).spec().placement)
    assert [candidate.pool.name for candidate in found] == ["cheap", "dear"]


def test_single_pods_and_queued_jobs_wait_for_nobody() -> None:
    """They cannot hold a half of anything."""
    spot, on_demand = _candidates()
    job = FALLBACK.build()
    assert placement_policy.pool_key(job, spot) is not None
    assert placement_policy.pool_key(job, on_demand) is None
    queued = FALLBACK.labelled(kueue_x_k8s_io__queue_name="q")
    queued = type(queued)(**{**vars(queued), "labels": {"kueue.x-k8s.io/queue-name": "q"}})
    assert placement_policy.pool_key(queued.build(), spot) is None


def test_pauses_stay_finite_however_long_a_pool_is_full() -> None:
    """Two weeks of rounds."""
    assert placement_policy.pause(PlacementStatus(rounds=5000), jitter=0.0) == 150


def test_a_gang_that_found_its_nodes_begins_the_next_search_anew() -> None:
    """Rounds in vain are forgotten."""
    state = placement_policy.after_end(PlacementStatus(rounds=7), Cause.APPLICATION, _candidates())
    assert state.rounds == 0


# --- in the loop --------------------------------------------------------------------------------------------------


def test_a_gang_that_finds_no_nodes_in_time_is_removed_and_the_next_placement_is_tried() -> None:
    """Not counted, and the plan is that of the new nodes with the same global batch."""
    story = training(FALLBACK, RUNTIME)
    waiting = (a_pod(0).unschedulable().of_run(_run_of(story)),)
    job = an_attempt_job(run=_run_of(story))
    story.sees(at(59), jobs=(job,), pods=waiting)
    assert story.status.attempts[-1].end_time is None
    assert "the next placement is tried" in story.status.message
    story.sees(at(60), jobs=(job,), pods=waiting)
    assert story.status.attempts[-1].cause == "NotScheduled"
    assert story.deleted() == ["Job/support-a1"]
    story.sees(at(61))
    assert "Job/support-a2" in story.created()
    assert story.status.plan is not None
    assert (story.status.plan.pool, story.status.plan.nodes, story.status.plan.global_batch_size) == (
        "on-demand",
        1,
        16,
    )
    assert story.status.totals.failures == 0


def test_the_time_in_a_queue_does_not_count() -> None:
    """The Job's own start is when the queue let it go."""
    story = training(FALLBACK, RUNTIME)
    run = _run_of(story)
    story.sees(at(500), jobs=(an_attempt_job(run=run, is_suspended=True),))
    assert story.status.attempts[-1].end_time is None
    story.sees(at(530), jobs=(an_attempt_job(run=run, start_time=at(500)),), pods=(a_pod().pending().of_run(run),))
    assert story.status.attempts[-1].end_time is None


def test_a_gang_comes_after_the_one_that_waits_for_the_same_nodes() -> None:
    """Two halves would wait for each other."""
    story = training(FALLBACK, RUNTIME)
    assert story.actions.waits_for_nodes is not None
    pool = story.actions.waits_for_nodes
    run = _run_of(story)
    pods = tuple(a_pod(n).of_run(run) for n in (0, 1))
    story.sees(at(5), jobs=(an_attempt_job(run=run),), pods=pods[:1])
    assert story.actions.waits_for_nodes == pool, "half a gang still waits"
    story.sees(at(6), jobs=(an_attempt_job(run=run),), pods=pods)
    assert story.actions.waits_for_nodes is None
    story.sees(at(7), jobs=(an_attempt_job(run=run),), pods=(pods[0], pods[1].disrupted("PreemptionByScheduler")))
    story.sees(at(8), busy_pools=frozenset({pool}))
    assert story.created() == []
    assert (story.condition("Running"), story.actions.stands_in_line) == (("False", "PoolBusy"), pool)
    story.sees(at(9))
    assert "Job/support-a2" in story.created()


def test_a_gang_that_is_there_already_is_followed_even_if_it_is_not_its_turn() -> None:
    """The operator died after creating it; its pods wait for nodes and may hold some."""
    story = training(FALLBACK, RUNTIME)
    pool = story.actions.waits_for_nodes
    assert pool is not None
    story = unrecorded(story)
    story.sees(at(5), jobs=(an_attempt_job(run=_run_of(story)),), busy_pools=frozenset({pool}))
    assert (story.status.totals.attempts, story.actions.stands_in_line) == (1, None)
    assert story.actions.waits_for_nodes is None, "the pool is not asked for: nothing new is created"
    story.sees(at(5), jobs=(an_attempt_job(run=_run_of(story)),))
    assert story.actions.waits_for_nodes == pool


def test_a_snapshot_is_taken_again_whoever_has_the_pool() -> None:
    """The pool is asked for before pods are created, and not before what they read."""
    story = training(FALLBACK, RUNTIME)
    pool = story.actions.waits_for_nodes
    assert pool is not None
    assert story.actions.creates_pods
    jobs = (an_attempt_job(run=_run_of(story)),)
    story.snapshot = None
    story.sees(at(5), jobs=jobs, busy_pools=frozenset({pool}))
    assert (story.created(), story.actions.creates_pods) == (["ConfigMap/support-run"], False)
    assert story.actions.waits_for_nodes == pool


def test_a_gang_that_stands_in_line_for_too_long_goes_elsewhere() -> None:
    """As if it had waited for the nodes itself."""
    story, pool = _interrupted_at_11()
    busy = frozenset({pool})
    story.sees(at(20), busy_pools=busy)
    assert story.created() == []
    story.sees(at(79), busy_pools=busy)
    assert story.status.placement.candidate == 0
    story.sees(at(80), busy_pools=busy)
    story.sees(at(80), busy_pools=busy)
    assert "Job/support-a2" in story.created()
    assert story.status.plan is not None
    assert story.status.plan.pool == "on-demand"


def test_the_world_may_shrink_and_the_run_stays_the_same() -> None:
    """Placement is no part of a run's identity."""
    assert a_snapshot(FALLBACK, RUNTIME).digest == a_snapshot(a_job(), RUNTIME).digest


def test_a_gang_that_had_its_nodes_is_never_judged_for_want_of_them() -> None:
    """A pod that is missing from a list after hours of training is for the blame to find."""
    story = training(FALLBACK, RUNTIME)
    run = _run_of(story)
    pods = tuple(a_pod(n).of_run(run).bound(1) for n in (0, 1))
    story.sees(at(10), jobs=(an_attempt_job(run=run),), pods=pods)
    story.sees(at(5000), jobs=(an_attempt_job(run=run),), pods=pods[:1])
    assert (story.status.attempts[-1].end_time, story.actions.waits_for_nodes) == (None, None)


def test_suspension_ends_the_wait_in_line() -> None:
    """Whoever comes back has not waited meanwhile."""
    story, pool = _interrupted_at_11()
    story.sees(at(20), busy_pools=frozenset({pool}))
    before = story.job
    story.job = story.job.suspended()
    story.sees(at(30))
    story.job = before.with_status(story.status)
    story.sees(at(5000), busy_pools=frozenset({pool}))
    assert (story.status.placement.candidate, story.status.placement.waiting_since) == (0, at(5000))
