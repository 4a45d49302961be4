"""The CPU stage: one Job that checks the model and the dataset before any GPU is held.

Retrying is Kubernetes' own: the Job's podFailurePolicy ends it at once for what only the user can mend (64, 65),
ignores disruptions and retries the rest with backoff. What is read here is the pods' last words. Only a pod that is
lost with its node is ours to replace.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from finetune_operator.api.status import (
    DatasetFactsStatus,
    FactsStatus,
    ModelFactsStatus,
    ResultStatus,
)
from finetune_operator.builders.locations import public_uri
from finetune_operator.builders.names import prepare_name
from finetune_operator.builders.prepare import build_prepare
from finetune_operator.constants import MAX_MESSAGE, Reason
from finetune_operator.core.draft import Draft, cut
from finetune_operator.core.observed import Pod
from finetune_operator.core.planner.plan import plan_attempt
from finetune_operator.core.pod_trouble import describe_trouble
from finetune_operator.core.progress import finished_progress
from finetune_operator.core.restart_policy import MEND_AND_RUN_AGAIN, RUN_AGAIN
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.messages import PrepareTermination, PublishedResult, UserFault


def prepare(draft: Draft, snapshot: Snapshot) -> FactsStatus | None:
    """What the stage found out, when there is something to train; until then, create its Job and follow it."""
    if draft.status.facts is None:
        _follow(draft, snapshot)
    return draft.status.facts if not draft.is_finished else None


def _follow(draft: Draft, snapshot: Snapshot) -> None:
    job, pods = draft.observed.prepare_job(), draft.observed.prepare_pods()
    if job is None:
        draft.create(*build_prepare(draft.observed.job, snapshot))
        _say(draft, "checking the model and the dataset")
        return
    if job.is_being_deleted:
        # a Job of an earlier suspension: its name is free again in a moment
        _say(draft, "waiting for the previous prepare Job to go")
        draft.look_again(1)
        return
    if job.run != snapshot.digest[:12]:
        # Accepted by a pass that died before it could record it; since then the snapshot was lost and the spec changed.
        draft.delete_job(job)
        _say(draft, "removing the prepare Job of a run that was not begun")
        draft.look_again(1)
        return
    last_words = [message for pod in pods if (message := _last_words(pod)) is not None]
    done = next((message for message in last_words if message.outcome == "Succeeded"), None)
    fault = next((message.fault for message in last_words if message.fault is not None), None)
    if done is not None and done.model is not None and done.dataset is not None:
        _take_over(draft, snapshot, done)
    elif fault is not None:
        _fail(draft, Reason.USER_ERROR, describe_fault(fault))
    elif job.is_failed:
        last = _describe_last_end(draft, pods, snapshot) or (
            "its pods are gone and left no message; its events may tell why: "
            f"kubectl -n {draft.observed.job.namespace} describe job {prepare_name(draft.observed.job.name)}"
        )
        _fail(draft, Reason.PREPARE_FAILED, f"the prepare Job failed: {last}")
    elif job.is_complete and any(pod.phase == "Succeeded" for pod in pods):
        _fail(
            draft,
            Reason.PREPARE_FAILED,
            "the prepare pod ended well, but its message could not be read: spec.image of FineTuneRuntime "
            f"{snapshot.spec.runtime_ref.name!r} must be the trainer of this operator's version, is "
            f"{snapshot.runtime.image}",
        )
    elif job.is_complete:
        # The pod and its words are gone; the stage is idempotent, so it runs once more.
        draft.delete_job(job)
        _say(draft, "the prepare pod vanished before its result was read; running it once more")
        draft.look_again(1)
    elif any(not pod.is_terminal and pod.is_gone_by(draft.now) for pod in pods):
        # The Job would wait for its node for ever: a pod failure policy allows no replacement before the pod has ended.
        draft.delete_job(job)
        _say(draft, "the prepare pod's node does not answer; starting it on another one")
        draft.look_again(1)
    else:
        for pod in pods:
            if pod.deletion_time is not None and not pod.is_terminal:
                draft.look_again((pod.deletion_time - draft.now).total_seconds())
        trouble = describe_trouble(pods) or _describe_last_end(draft, pods, snapshot)
        if job.is_suspended:
            trouble = f"Job {job.name} was suspended by somebody else, who has to resume it"
        _say(draft, "checking the model and the dataset" + (f": {trouble}" if trouble else ""))


def describe_fault(fault: UserFault) -> str:
    """Field, value and remedy in one sentence."""
    value = f" ({fault.value})" if fault.value else ""
    return f"{fault.field}{value}: {fault.message}; {fault.remedy}"


def _fail(draft: Draft, reason: str, message: str) -> None:
    """End the run; what a pod said is cut rather than how to go on."""
    remedy = MEND_AND_RUN_AGAIN if reason == Reason.USER_ERROR else f"mend the cause, {RUN_AGAIN}"
    draft.finish(failed=True, reason=reason, message=f"{cut(message, MAX_MESSAGE)}; {remedy}")


def _say(draft: Draft, message: str) -> None:
    draft.in_progress(Reason.PREPARING, message)
    draft.say("Preparing", message)


def _last_words(pod: Pod) -> PrepareTermination | None:
    if not pod.is_terminal:
        return None
    try:
        return PrepareTermination.model_validate_json(pod.termination_message)
    except ValidationError:
        return None


def _describe_last_end(draft: Draft, pods: Sequence[Pod], snapshot: Snapshot) -> str:
    """Why the newest pod that ended did so: in its own words, or in the kubelet's and where more can be read."""
    last = next((pod for pod in reversed(pods) if pod.is_terminal), None)
    if last is None:
        return ""
    if last.terminated_reason == "OOMKilled":
        return (
            f"pod {last.name} exceeded its memory limit of {snapshot.runtime.prepare_memory} (OOMKilled); raise "
            f"spec.prepareMemory of FineTuneRuntime {snapshot.spec.runtime_ref.name!r}, which only a new spec.runId "
            "takes up"
        )
    words = _last_words(last)
    if words is not None and words.message:
        return words.message
    code = f" with exit code {last.exit_code}" if last.exit_code is not None else ""
    reason = last.terminated_reason or last.reason
    kubectl = f"kubectl -n {draft.observed.job.namespace}"
    return (
        f"pod {last.name} ended{code}"
        + (f" ({reason})" if reason else "")
        + f" and left no message; its log and its events may tell why: {kubectl} logs {last.name}, {kubectl} describe "
        f"pod {last.name}"
    )


def _take_over(draft: Draft, snapshot: Snapshot, done: PrepareTermination) -> None:
    if done.model is None or done.dataset is None:
        raise AssertionError("a successful prepare must name both facts")
    facts = FactsStatus(
        model=ModelFactsStatus.model_validate(done.model.model_dump()),
        dataset=DatasetFactsStatus.model_validate(done.dataset.model_dump()),
    )
    draft.update(facts=facts, plan=plan_attempt(snapshot, facts).to_status(snapshot))
    if done.result is not None:
        _result_found(draft, snapshot, done.result)
        return
    if done.warnings:
        draft.event(Reason.DATASET_WARNING, "; ".join(done.warnings), warning=True, key=facts.dataset.digest)


def _result_found(draft: Draft, snapshot: Snapshot, result: PublishedResult) -> None:
    uri = public_uri(snapshot, result.uri)
    draft.update(
        result=ResultStatus(uri=uri, digest=result.digest, metrics=result.metrics),
        progress=finished_progress(draft, result),
    )
    draft.finish(
        failed=False,
        reason=Reason.RESULT_FOUND,
        message=f"the same run on the same data was published before at {uri}; change spec.runId to train again",
    )
