"""Gang after gang: start an attempt, follow it, record its end, and start the next one when its pods are gone.

Every branch ends the pass; the next event or the requeue brings the next one. An attempt whose children were created
but not recorded (the operator died in between) is created again by the same names and thereby taken over.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.api.conditions import find_condition
from finetune_operator.api.status import AttemptStatus, FactsStatus, ResultStatus
from finetune_operator.builders.attempt import build_attempt
from finetune_operator.builders.locations import public_uri
from finetune_operator.constants import STAGE_TRAIN, Cause, ConditionType, Reason
from finetune_operator.core.actions import Deletion
from finetune_operator.core.attempt_record import (
    change_attempt,
    end_attempt,
    last_attempt,
    live_attempt,
    open_attempt,
)
from finetune_operator.core.blame import Pending, Verdict, blame, termination_of
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import ChildJob, Pod
from finetune_operator.core.planner.plan import Plan, plan_attempt
from finetune_operator.core.pod_trouble import describe_trouble
from finetune_operator.core.preparation import describe_fault
from finetune_operator.core.progress import (
    finished_progress,
    record_checkpoint,
    take_last_words,
    take_progress,
)
from finetune_operator.core.restart_policy import GiveUp, Retry, next_step
from finetune_operator.core.snapshot import Snapshot


def advance(draft: Draft, snapshot: Snapshot, facts: FactsStatus) -> None:
    """One step of the run's attempts."""
    plan = plan_attempt(snapshot, facts)
    live, last = live_attempt(draft.status), last_attempt(draft.status)
    if live is not None:
        _follow(draft, snapshot, plan, live)
    elif last is None:
        _start(draft, snapshot, facts, plan)
    elif _old_pods_are_gone(draft, last):
        _follow_up(draft, snapshot, facts, plan, last)


# --- a live attempt -----------------------------------------------------------------------------------------------


def _follow(draft: Draft, snapshot: Snapshot, plan: Plan, live: AttemptStatus) -> None:
    observed = draft.observed
    job, pods = observed.attempt_job(live.number), observed.attempt_pods(live.number)
    if job is None or job.is_being_deleted:
        _end(
            draft,
            snapshot,
            Verdict(Cause.UNKNOWN, f"the Job of attempt {live.number} was deleted by somebody else"),
            None,
        )
        return
    if live.start_time is None:
        change_attempt(draft, start_time=job.creation_time)
    take_progress(draft, snapshot, live.number)
    if job.is_complete or (len(pods) == plan.placement.nodes and all(pod.phase == "Succeeded" for pod in pods)):
        _complete(draft, snapshot, pods)
        return
    # A queue that takes its admission back ends the pods; the attempt goes on when it is admitted again.
    verdict = None if job.is_suspended else _judge(draft, plan, job, pods)
    if isinstance(verdict, Verdict):
        _end(draft, snapshot, verdict, job)
        return
    if isinstance(verdict, Pending):
        draft.look_again(verdict.recheck_after)
        _interrupted(draft, f"attempt {live.number}: {verdict.message}; waiting for better evidence of the cause")
    else:
        _describe(draft, plan, live, job, pods)
    if pods and pods[0].index == 0 and pods[0].phase == "Running":
        draft.follow_log(pods[0])


def _judge(draft: Draft, plan: Plan, job: ChildJob, pods: tuple[Pod, ...]) -> Verdict | Pending | None:
    running = find_condition(draft.status.conditions, ConditionType.RUNNING)
    return blame(
        job,
        pods,
        draft.observed.nodes,
        is_spot=plan.pool.spot,
        incomplete_since=running.last_transition_time if running and running.status == "False" else draft.now,
        now=draft.now,
    )


def _describe(draft: Draft, plan: Plan, live: AttemptStatus, job: ChildJob, pods: tuple[Pod, ...]) -> None:
    """Say what the attempt waits for or does."""
    running = [pod for pod in pods if pod.phase == "Running"]
    done = [pod for pod in pods if pod.phase == "Succeeded"]
    head = f"attempt {live.number}"
    if job.is_suspended:
        draft.in_progress(Reason.QUEUED, f"{head} waits in its queue")
        draft.say("Queued", f"{head} waits in its queue")
    elif len(running) == plan.placement.nodes:
        draft.in_progress(Reason.TRAINING, f"all {len(running)} pods of {head} run", running=True)
        step_from = draft.status.attempts[-1].step_from
        resumed = f", resumed from step {step_from}" if step_from else ""
        draft.say("Running", f"{head} runs on {plan.describe()}{resumed}")
    elif done:
        message = f"{head} is finishing: {len(done)} of {plan.placement.nodes} pods have ended well"
        draft.in_progress(Reason.FINISHING, message)
        draft.say("Running", message)
    else:
        trouble = describe_trouble(pods)
        unschedulable = any(pod.unschedulable_message for pod in pods)
        waiting = Reason.RESUMING if live.number > 1 else Reason.STARTING
        message = f"{head}: {len(running)} of {plan.placement.nodes} pods run" + (f"; {trouble}" if trouble else "")
        draft.in_progress(Reason.UNSCHEDULABLE if unschedulable else waiting, message)
        draft.say("Queued", message)


def _complete(draft: Draft, snapshot: Snapshot, pods: tuple[Pod, ...]) -> None:
    """The gang evaluated and published before it ended."""
    last_words = [message for pod in pods if (message := termination_of(pod)) is not None]
    result = next((message.result for message in last_words if message.result is not None), None)
    change_attempt(draft, step_to=draft.status.plan.total_steps if draft.status.plan else None)
    end_attempt(draft, None)
    record_checkpoint(draft, snapshot, next((m.checkpoint for m in last_words if m.checkpoint is not None), None))
    if result is None:
        # Every pod ended well, so the result is there; only its description is gone with the pods.
        draft.finish(
            failed=False,
            reason=Reason.TRAINED,
            message="trained; the result lies in the job's output folder",
        )
        return
    uri = public_uri(snapshot, result.uri)
    draft.update(
        result=ResultStatus(uri=uri, digest=result.digest, metrics=result.metrics),
        progress=finished_progress(draft, result),
    )
    metrics = result.metrics
    change = ""
    if "baseEvalLoss" in metrics and "evalLoss" in metrics:
        change = f"; evaluation loss {metrics['baseEvalLoss']:.3f} -> {metrics['evalLoss']:.3f}"
    draft.finish(failed=False, reason=Reason.TRAINED, message=f"trained and published at {uri}{change}")


def _end(draft: Draft, snapshot: Snapshot, verdict: Verdict, job: ChildJob | None) -> None:
    """Record the end first; the Job is deleted after the record is written."""
    if verdict.termination is not None and verdict.termination.fault is not None:
        verdict = replace(verdict, message=describe_fault(verdict.termination.fault))
    take_last_words(draft, draft.observed.attempt_pods(draft.status.attempts[-1].number))
    end_attempt(draft, verdict)
    number = draft.status.totals.attempts
    decision = _next_step(draft, snapshot, verdict.cause)
    if isinstance(decision, GiveUp):
        _give_up(draft, decision)
        draft.look_again(0)
        return
    if job is not None:
        draft.delete(Deletion("Job", job.name, job.uid))
    _interrupted(draft, f"attempt {number} ended ({verdict.cause}: {verdict.message}); its pods are being removed")
    draft.event(
        Reason.INTERRUPTED,
        f"attempt {number} ended: {verdict.cause}: {verdict.message}",
        warning=True,
        key=str(number),
    )
    draft.look_again(1)


def _give_up(draft: Draft, decision: GiveUp) -> None:
    last = draft.status.attempts[-1]
    draft.finish(
        failed=True, reason=decision.reason, message=f"attempt {last.number}: {last.message}. {decision.remedy}"
    )


# --- between attempts ---------------------------------------------------------------------------------------------


def _old_pods_are_gone(draft: Draft, last: AttemptStatus) -> bool:
    """Whether the last gang can no longer write; else see to it that it goes."""
    observed = draft.observed
    job, pods = observed.attempt_job(last.number), observed.attempt_pods(last.number)
    _fill_in_last_words(draft, last, pods)
    if job is not None and not job.is_being_deleted:
        draft.delete(Deletion("Job", job.name, job.uid))
    busy = [pod for pod in pods if not pod.is_gone_by(draft.now)]
    if not busy:
        return True
    _interrupted(draft, f"attempt {last.number} ended ({last.cause}); waiting for {len(busy)} of its pods to go")
    grace_ends = [(pod.deletion_time - draft.now).total_seconds() for pod in busy if pod.deletion_time is not None]
    draft.look_again(min([*grace_ends, 1.0]) if len(grace_ends) < len(busy) else min(grace_ends))
    return False


def _follow_up(draft: Draft, snapshot: Snapshot, facts: FactsStatus, plan: Plan, last: AttemptStatus) -> None:
    decision = _next_step(draft, snapshot, last.cause)
    if isinstance(decision, GiveUp):
        _give_up(draft, decision)
        return
    due = (last.end_time or draft.now) + timedelta(seconds=decision.delay)
    if draft.now < due:
        wait = (due - draft.now).total_seconds()
        message = (
            f"attempt {last.number} failed ({last.cause}: {last.message}); the next one starts at {due:%H:%M:%S} UTC"
        )
        draft.in_progress(Reason.BACKING_OFF, message)
        draft.say("Interrupted", message)
        draft.look_again(wait)
        return
    _start(draft, snapshot, facts, plan)


def _start(draft: Draft, snapshot: Snapshot, facts: FactsStatus, plan: Plan) -> None:
    number = _next_number(draft)
    busy = [
        pod
        for pod in draft.observed.pods
        if pod.stage == STAGE_TRAIN and pod.attempt != number and not pod.is_gone_by(draft.now)
    ]
    if busy:
        _interrupted(draft, f"waiting for {len(busy)} pods of an earlier attempt to go")
        draft.look_again(1)
        return
    draft.create(*build_attempt(draft.observed.job, snapshot, facts, plan, number))
    taken_over = draft.observed.attempt_job(number)
    open_attempt(
        draft,
        number=number,
        run=snapshot.digest[:12],
        placement=plan.describe(),
        start_time=taken_over.creation_time if taken_over else None,
    )
    draft.update(plan=plan.to_status(snapshot))
    reason = Reason.RESUMING if number > 1 else Reason.STARTING
    origin = " and resumes from the newest checkpoint" if draft.status.checkpoint else ""
    message = f"attempt {number} starts on {plan.describe()}{origin}"
    draft.in_progress(reason, message)
    draft.say("Queued", message)
    draft.event(reason, f"created attempt {number} on {plan.describe()}", key=str(number))


def _next_step(draft: Draft, snapshot: Snapshot, cause: str) -> Retry | GiveUp:
    totals = draft.status.totals
    return next_step(
        cause,
        failures=totals.failures,
        without_progress=totals.without_progress,
        backoff_limit=snapshot.spec.backoff_limit,
    )


def _next_number(draft: Draft) -> int:
    """One more than the last. An attempt that was created and not recorded is taken over while its Job is there.

    When its Job is gone, its pods would be taken for those of the new attempt: its number is left out.
    """
    number = draft.status.totals.attempts + 1
    job = draft.observed.attempt_job(number)
    is_left_over = any(pod.stage == STAGE_TRAIN and pod.attempt == number for pod in draft.observed.pods)
    return number + 1 if is_left_over and (job is None or job.is_being_deleted) else number


def _interrupted(draft: Draft, message: str) -> None:
    draft.in_progress(Reason.INTERRUPTED, message)
    draft.say("Interrupted", message)


def _fill_in_last_words(draft: Draft, last: AttemptStatus, pods: tuple[Pod, ...]) -> None:
    """A disruption is recorded before its pods end; what they say when they do is added when it is seen after all."""
    blamed = next((pod for pod in pods if pod.index == last.rank and pod.exit_code is not None), None)
    if blamed is not None and last.exit_code is None:
        change_attempt(draft, exit_code=blamed.exit_code)
    take_last_words(draft, pods)
