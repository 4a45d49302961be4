"""The end of an attempt: it completed the run, or it is recorded with its cause and something follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune_operator.api.status import AttemptStatus, FactsStatus, ProgressStatus, ResultStatus
from finetune_operator.builders.locations import mounts_of, public_uri, result_uri
from finetune_operator.constants import Cause, Reason
from finetune_operator.core import node_avoidance, placement_policy
from finetune_operator.core.attempt_record import attempts_of_run, change_attempt, end_attempt, everybody
from finetune_operator.core.blame import Verdict, termination_of
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import ChildJob, Pod
from finetune_operator.core.planner.placement import Candidate
from finetune_operator.core.planner.plan import Plan
from finetune_operator.core.preparation import describe_fault
from finetune_operator.core.progress import finished_progress, take_last_words
from finetune_operator.core.restart_policy import (
    DISRUPTIONS,
    GiveUp,
    Retry,
    is_repeated,
    jitter_of,
    next_step,
)
from finetune_operator.core.snapshot import Snapshot


def complete(draft: Draft, snapshot: Snapshot, facts: FactsStatus, pods: Sequence[Pod]) -> None:
    """The gang evaluated and published before it ended."""
    last_words = [message for pod in pods if (message := termination_of(pod)) is not None]
    result = next((message.result for message in last_words if message.result is not None), None)
    if result is not None and draft.status.progress is None:
        draft.update(progress=ProgressStatus())  # the run was over before its log was read
    take_last_words(draft, pods)
    change_attempt(draft, step_to=draft.status.plan.total_steps if draft.status.plan else None)
    end_attempt(draft, None)
    if result is None:
        # Every pod ended well, so the result is there; only its description is gone with the pods.
        uri = public_uri(snapshot, result_uri(snapshot, mounts_of(snapshot), draft.observed.job, facts))
        draft.finish(
            failed=False,
            reason=Reason.TRAINED,
            message=f"trained and published at {uri}; its metrics are in manifest.json there",
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


def end(
    draft: Draft,
    snapshot: Snapshot,
    candidates: Sequence[Candidate],
    plan: Plan,
    verdict: Verdict,
    job: ChildJob | None,
) -> None:
    """Record the end and what it means for the next attempt; the Job is deleted after the record is written."""
    if verdict.termination is not None and verdict.termination.fault is not None:
        verdict = replace(verdict, message=describe_fault(verdict.termination.fault))
    number = draft.status.attempts[-1].number
    take_last_words(draft, everybody(draft, number))
    is_replanned = _replan(draft, plan, verdict.cause)
    end_attempt(draft, verdict, is_replanned=is_replanned)
    draft.update(
        placement=placement_policy.after_end(draft.status.placement, verdict.cause, candidates),
        avoided_nodes=node_avoidance.after_end(draft.status.avoided_nodes, verdict.cause, verdict.node, draft.now),
    )
    decision = decide(draft, snapshot, draft.status.attempts[-1])
    if isinstance(decision, GiveUp) and not _may_still_save(draft, verdict.cause, number):
        give_up(draft, decision)
        return
    if job is not None:
        draft.delete_job(job)
    follows = "its pods are being removed"
    if is_replanned:
        follows = "the next one needs less memory"
    elif verdict.cause == Cause.NOT_SCHEDULED:
        follows = "the next placement is tried" if len(candidates) > 1 else "it is tried again after a pause"
    say_interrupted(draft, f"attempt {number} ended ({verdict.cause}: {verdict.message}); {follows}")
    draft.event(
        Reason.INTERRUPTED,
        f"attempt {number} ended: {verdict.cause}: {verdict.message}",
        warning=True,
        key=str(number),
    )
    draft.look_again(1)


def _may_still_save(draft: Draft, cause: str, number: int) -> bool:
    """Whether its pods, which were asked to go, may yet show that the attempt got on: it does not count then."""
    return cause in DISRUPTIONS and any(not pod.is_gone_by(draft.now) for pod in draft.observed.attempt_pods(number))


def decide(draft: Draft, snapshot: Snapshot, last: AttemptStatus) -> Retry | GiveUp:
    """What follows the end of ``last``: the same in the pass that records it and in all that wait for its pods, unless
    these say that they have saved."""
    totals, jitter = draft.status.totals, jitter_of(draft.observed.job.uid, last.number)
    if last.cause == Cause.NOT_SCHEDULED:
        return Retry(placement_policy.pause(draft.status.placement, jitter))
    return next_step(
        last.cause,
        failures=totals.failures,
        without_progress=totals.without_progress,
        backoff_limit=snapshot.spec.backoff_limit,
        is_replanned=last.replanned,
        replans=totals.replans,
        is_repeated=is_repeated(attempts_of_run(draft.status)),
        jitter=jitter,
    )


def give_up(draft: Draft, decision: GiveUp) -> None:
    """The run ends without a result."""
    last = draft.status.attempts[-1]
    draft.finish(
        failed=True, reason=decision.reason, message=f"attempt {last.number}: {last.message}. {decision.remedy}"
    )


def say_interrupted(draft: Draft, message: str) -> None:
    """Something happened that the run survives."""
    draft.in_progress(Reason.INTERRUPTED, message)
    draft.say("Interrupted", message)


def _replan(draft: Draft, plan: Plan, cause: str) -> bool:
    """Whether the next attempt needs less memory than this one, which ran out of it; whether the end counts as well is
    for ``restart_policy`` to say, by how often that was."""
    totals = draft.status.totals
    if cause != Cause.OUT_OF_MEMORY or not plan.can_be_safer:
        return False
    draft.update(totals=totals.model_copy(update={"replans": totals.replans + 1}))
    return True
