"""Gang after gang: start an attempt, follow it, and start the next one when the pods of the last are gone.

Every branch ends the pass; the next event or the requeue brings the next one. An attempt whose children were created
but not recorded (the operator died in between) is taken over: its Job is known by its number, and as long as there is
none its children are created again by the same names. How an attempt ends is in ``attempt_end.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_operator.api.conditions import find_condition
from finetune_operator.api.status import AttemptStatus, FactsStatus
from finetune_operator.builders.attempt import build_attempt
from finetune_operator.constants import STAGE_TRAIN, Cause, ConditionType, Reason
from finetune_operator.core import accounting, attempt_end, node_avoidance, placement_policy
from finetune_operator.core.actions import Sweep
from finetune_operator.core.attempt_record import (
    everybody,
    last_attempt,
    live_attempt,
    note_times,
    open_attempt,
    unrecorded_job,
)
from finetune_operator.core.blame import Gang, Pending, Verdict, blame, conclusive_verdict
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import ChildJob, Pod
from finetune_operator.core.planner.placement import Candidate, candidates
from finetune_operator.core.planner.plan import Plan, plan_attempt
from finetune_operator.core.pod_trouble import describe_trouble
from finetune_operator.core.progress import take_progress
from finetune_operator.core.restart_policy import GiveUp, deadline_exceeded
from finetune_operator.core.snapshot import Snapshot


@dataclass(frozen=True)
class Run:
    """What all decisions of a run are based on."""

    snapshot: Snapshot
    facts: FactsStatus
    candidates: list[Candidate]
    plan: Plan
    """Of the live attempt, or of the next one."""


def advance(draft: Draft, snapshot: Snapshot, facts: FactsStatus) -> None:
    """One step of the run's attempts."""
    run = _read_run(draft, snapshot, facts)
    live, last = live_attempt(draft.status), last_attempt(draft.status)
    if live is not None:
        _follow(draft, run, live)
    elif last is None:
        _start(draft, run)
    elif _old_pods_are_gone(draft, last):
        _follow_up(draft, run, last)


def _read_run(draft: Draft, snapshot: Snapshot, facts: FactsStatus) -> Run:
    status = draft.status
    plan = plan_attempt(snapshot, facts, candidate=status.placement.candidate, replans=status.totals.replans)
    return Run(snapshot, facts, candidates(snapshot.runtime, snapshot.spec.placement), plan)


# --- a live attempt -----------------------------------------------------------------------------------------------


def _follow(draft: Draft, run: Run, live: AttemptStatus) -> None:
    observed = draft.observed
    job, pods = observed.attempt_job(live.number), observed.attempt_pods(live.number)
    take_progress(draft, run.snapshot, live.number)
    if observed.has_succeeded(live.number, run.plan.placement.nodes):
        attempt_end.complete(draft, run.snapshot, run.facts, everybody(draft, live.number))
        return
    if job is None or job.is_being_deleted:
        gone = conclusive_verdict(_gang(draft, run, job, live.number), draft.now) or Verdict(
            Cause.UNKNOWN, f"the Job of attempt {live.number} was deleted, or taken from us, by somebody else"
        )
        attempt_end.end(draft, run.snapshot, run.candidates, run.plan, gone, None)
        return
    if job.is_suspended:
        accounting.pause(draft)
    # A queue that takes its admission back ends the pods; the attempt goes on when it is admitted again.
    verdict = None if job.is_suspended else _judge(draft, run, job, pods)
    if isinstance(verdict, Verdict):
        attempt_end.end(draft, run.snapshot, run.candidates, run.plan, verdict, job)
        return
    if isinstance(verdict, Pending):
        draft.look_again(verdict.recheck_after)
        attempt_end.say_interrupted(
            draft, f"attempt {live.number}: {verdict.message}; waiting for better evidence of the cause"
        )
    else:
        _describe(draft, run, job, pods)
    if not _has_its_nodes(draft, run, pods) and not job.is_suspended:
        draft.waits_for_nodes(placement_policy.pool_key(observed.job, run.plan.candidate))
    for pod in pods:
        if pod.deletion_time is not None and not pod.is_gone_by(draft.now):
            draft.look_again((pod.deletion_time - draft.now).total_seconds())
    if pods and pods[0].index == 0 and pods[0].phase == "Running":
        draft.follow_log(pods[0])


def _judge(draft: Draft, run: Run, job: ChildJob, pods: tuple[Pod, ...]) -> Verdict | Pending | None:
    """What the pods say; else whether the time for finding nodes, or for everything, is over."""
    running = find_condition(draft.status.conditions, ConditionType.RUNNING)
    gang = _gang(draft, run, job, job.attempt)
    since = running.last_transition_time if running and running.status == "False" else draft.now
    return (
        blame(gang, incomplete_since=since, now=draft.now)
        or _judge_deadline(draft, run, job)
        or _judge_placement(draft, run, job, pods)
    )


def _gang(draft: Draft, run: Run, job: ChildJob | None, number: int) -> Gang:
    status = draft.status
    return Gang(
        job=job,
        pods=draft.observed.attempt_pods(number),
        vanished=draft.observed.vanished_attempt_pods(number),
        nodes=draft.observed.nodes,
        processes_per_node=run.plan.placement.gpus_per_node,
        is_spot=run.plan.pool.spot,
        has_trained=bool((status.checkpoint and status.checkpoint.step) or (status.progress and status.progress.step)),
    )


def _has_its_nodes(draft: Draft, run: Run, pods: tuple[Pod, ...]) -> bool:
    """Whether every pod has, or had, its node: one that went since is for ``blame`` to judge."""
    nodes = run.plan.placement.nodes
    return draft.status.attempts[-1].bound_pods >= nodes or placement_policy.is_placed(pods, nodes)


def _judge_deadline(draft: Draft, run: Run, job: ChildJob) -> Verdict | None:
    limit = run.snapshot.spec.active_deadline_seconds
    if limit is None:
        return None
    begin = placement_policy.begin_of(draft.observed.job, job)
    active = (draft.now - begin).total_seconds() if begin is not None else 0.0
    left = limit - draft.status.totals.active_seconds - active
    if left > 0:
        draft.look_again(left)
        return None
    return Verdict(Cause.DEADLINE_EXCEEDED, f"spec.activeDeadlineSeconds {limit} is used up")


def _judge_placement(draft: Draft, run: Run, job: ChildJob, pods: tuple[Pod, ...]) -> Verdict | None:
    begin = placement_policy.begin_of(draft.observed.job, job)
    if begin is None:
        draft.look_again(1)
        return None
    if _has_its_nodes(draft, run, pods):
        return None
    deadline = placement_policy.schedule_deadline(begin, run.plan.candidate)
    if draft.now < deadline:
        draft.look_again((deadline - draft.now).total_seconds())
        return None
    bound = sum(1 for pod in pods if pod.node)
    trouble = describe_trouble(pods)
    return Verdict(
        Cause.NOT_SCHEDULED,
        f"{bound} of {run.plan.placement.nodes} pods found nodes within scheduleTimeoutSeconds "
        f"{run.plan.placement.schedule_timeout_seconds}" + (f"; {trouble}" if trouble else ""),
    )


def _describe(draft: Draft, run: Run, job: ChildJob, pods: tuple[Pod, ...]) -> None:
    """Say what the attempt waits for or does. No counts of pods: every one of them would be a write."""
    live, nodes = draft.status.attempts[-1], run.plan.placement.nodes
    head = f"attempt {live.number}"
    if job.is_suspended:
        draft.in_progress(Reason.QUEUED, f"{head} waits in its queue")
        draft.say("Queued", f"{head} waits in its queue")
    elif len(pods) == nodes and all(pod.phase in ("Running", "Succeeded") for pod in pods):
        note_times(draft)
        resumed = f", resumed from step {live.step_from}" if live.step_from else ""
        draft.in_progress(Reason.TRAINING, f"all {nodes} pods of {head} run", running=True)
        draft.say("Running", f"{head} runs on {run.plan.describe()}{resumed}")
    elif trouble := describe_trouble(pods):
        unschedulable = any(pod.unschedulable_message for pod in pods)
        message = f"{head}: {trouble}" + (_what_if_no_node_comes(draft, job, run) if unschedulable else "")
        draft.in_progress(Reason.UNSCHEDULABLE if unschedulable else _begin(draft, live.number), message)
        draft.say("Queued", message)
    else:
        _say_started(draft, run, live.number)


def _what_if_no_node_comes(draft: Draft, job: ChildJob, run: Run) -> str:
    begin = placement_policy.begin_of(draft.observed.job, job)
    if begin is None:
        return ""
    deadline = placement_policy.schedule_deadline(begin, run.plan.candidate)
    then = "the next placement is tried" if len(run.candidates) > 1 else "it is tried again after a pause"
    return f". If not all pods have nodes by {_clock(deadline)}, {then}"


# --- between attempts ---------------------------------------------------------------------------------------------


def _old_pods_are_gone(draft: Draft, last: AttemptStatus) -> bool:
    """Whether the last gang can no longer write; else see to it that it goes."""
    observed = draft.observed
    job, pods = observed.attempt_job(last.number), observed.attempt_pods(last.number)
    draft.delete_unlisted_jobs()
    busy = [pod for pod in pods if not pod.is_gone_by(draft.now)]
    leftover = job if job is not None and not job.is_being_deleted else None
    if leftover is None and not busy:
        return True
    if leftover is not None:
        # The pass that recorded the end died before this. Until it is done, the Job may still make pods.
        draft.delete_job(leftover)
        draft.look_again(1)
    attempt_end.say_interrupted(draft, f"attempt {last.number} ended ({last.cause}); waiting for its pods to go")
    for pod in busy:
        draft.look_again((pod.deletion_time - draft.now).total_seconds() if pod.deletion_time is not None else 1)
    return False


def _follow_up(draft: Draft, run: Run, last: AttemptStatus) -> None:
    decision = attempt_end.decide(draft, run.snapshot, last)
    limit = run.snapshot.spec.active_deadline_seconds
    if limit is not None and draft.status.totals.active_seconds >= limit and not isinstance(decision, GiveUp):
        decision = deadline_exceeded()
    if isinstance(decision, GiveUp):
        attempt_end.give_up(draft, decision)
        return
    due = (last.end_time or draft.now) + timedelta(seconds=decision.delay)
    if draft.now < due:
        message = (
            f"attempt {last.number} ended ({last.cause}: {last.message}); the next one starts at {_clock(due)} on "
            f"{run.plan.describe()}"
        )
        draft.in_progress(Reason.BACKING_OFF, message)
        draft.say("Interrupted", message)
        draft.look_again((due - draft.now).total_seconds())
        return
    _start(draft, run)


def _start(draft: Draft, run: Run) -> None:
    number = _next_number(draft)
    busy = [
        pod
        for pod in draft.observed.pods
        if pod.stage == STAGE_TRAIN and pod.attempt != number and not pod.is_gone_by(draft.now)
    ]
    if busy:
        attempt_end.say_interrupted(draft, f"waiting for {len(busy)} pods of an earlier attempt to go")
        draft.look_again(1)
        return
    if loose := [pod.name for pod in draft.observed.loose_pods if not pod.is_gone_by(draft.now)]:
        # Whoever took them from their Job wants them to run on; they end by themselves, and nothing starts beside them.
        attempt_end.say_interrupted(
            draft,
            f"waiting for the end of {', '.join(loose)}: somebody took them from their Job; delete them to go on now",
        )
        draft.look_again(1)
        return
    job, known = draft.observed.job, draft.observed.attempt_job(number)
    taken_over = known if known is not None and not known.is_being_deleted else None
    # A gang that is there already waits for nodes whether it is its turn or not: it has to be followed.
    pool = placement_policy.pool_key(job, run.plan.candidate) if taken_over is None else None
    if pool is not None and pool in draft.observed.busy_pools:
        _wait_for_pool(draft, run, pool)
        return
    last = last_attempt(draft.status)
    if last is not None:
        draft.sweep(Sweep(stage=STAGE_TRAIN, attempt=last.number))
    # A Job that is there is only recorded. Should somebody delete it now, its pods may write beside those of another.
    if taken_over is None:
        avoided = node_avoidance.names(draft.status.avoided_nodes, draft.now)
        draft.create(*build_attempt(job, run.snapshot, run.facts, run.plan, number, avoided))
        _look_in_time(draft, run)
    else:
        draft.look_again(0)  # at how far it has got: no event will tell
    draft.waits_for_nodes(pool)
    open_attempt(
        draft,
        number=number,
        run=run.snapshot.digest[:12],
        placement=run.plan.describe(),
        start_time=placement_policy.begin_of(job, taken_over) if taken_over else None,
    )
    draft.update(
        plan=run.plan.to_status(run.snapshot),
        placement=draft.status.placement.model_copy(update={"waiting_since": None}),
    )
    _say_started(draft, run, number)
    draft.event(_begin(draft, number), f"created attempt {number} on {run.plan.describe()}", key=str(number))


def _look_in_time(draft: Draft, run: Run) -> None:
    """At the latest when the gang must have its nodes, or the run's time is over: of pods that wait no event tells."""
    draft.look_again(run.plan.placement.schedule_timeout_seconds)
    limit = run.snapshot.spec.active_deadline_seconds
    if limit is not None:
        draft.look_again(limit - draft.status.totals.active_seconds)


def _wait_for_pool(draft: Draft, run: Run, pool: str) -> None:
    """Let the gang before this one find its nodes; go elsewhere when that takes as long as finding nodes may take."""
    draft.stand_in_line(pool)
    state = draft.status.placement
    since = state.waiting_since or draft.now
    deadline = since + timedelta(seconds=run.plan.placement.schedule_timeout_seconds)
    if draft.now >= deadline and len(run.candidates) > 1:
        draft.update(placement=placement_policy.move_on(state, run.candidates))
        draft.look_again(0)
        return
    draft.update(placement=state.model_copy(update={"waiting_since": since}))
    message = (
        f"waits for pool {run.plan.pool.name!r}: another job's pods are finding their nodes there; "
        f"{run.plan.describe()} comes after them"
    )
    draft.in_progress(Reason.POOL_BUSY, message)
    draft.say("Queued", message)
    if draft.now < deadline:
        draft.look_again((deadline - draft.now).total_seconds())


def _say_started(draft: Draft, run: Run, number: int) -> None:
    origin = " and resumes from the newest checkpoint" if draft.status.checkpoint else ""
    message = f"attempt {number} starts on {run.plan.describe()}{origin}"
    draft.in_progress(_begin(draft, number), message)
    draft.say("Queued", message)


def _begin(draft: Draft, number: int) -> str:
    run = draft.status.run
    return Reason.RESUMING if run is not None and number > max(run.first_attempt, 1) else Reason.STARTING


def _next_number(draft: Draft) -> int:
    """One more than the last. An attempt that was created and not recorded is taken over while its Job is there.

    When its Job is gone, its pods would be taken for those of the new attempt: its number is left out.
    """
    job = unrecorded_job(draft)
    if job is not None and not job.is_being_deleted:
        return job.attempt
    number = job.attempt if job is not None else draft.status.totals.attempts + 1
    is_left_over = any(pod.stage == STAGE_TRAIN and pod.attempt == number for pod in draft.observed.pods)
    return number + 1 if is_left_over else number


def _clock(time: datetime) -> str:
    return f"{time:%H:%M:%S} UTC"
