"""Entries of ``status.attempts``: opened with an attempt, closed with its verdict, never rewritten afterwards.

The list keeps the newest ten; numbers and counts by cause live in ``status.totals``, so nothing is lost with an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.status import AttemptStatus, FineTuneJobStatus, RunStatus
from finetune_operator.constants import MAX_ATTEMPTS_LISTED, MAX_MESSAGE, Cause
from finetune_operator.core.blame import Verdict
from finetune_operator.core.draft import Draft, cut
from finetune_operator.core.observed import ChildJob, Pod
from finetune_operator.core.placement_policy import begin_of
from finetune_operator.core.restart_policy import AT_ONCE, DISRUPTIONS, is_counted

_TRACEBACK_LIMIT = 512


def last_attempt(status: FineTuneJobStatus) -> AttemptStatus | None:
    """The newest attempt of the current run."""
    newest = status.attempts[-1] if status.attempts else None
    if newest is None or status.run is None or not _is_of_run(newest, status.run):
        return None
    return newest


def attempts_of_run(status: FineTuneJobStatus) -> list[AttemptStatus]:
    """The listed attempts of the current run. A run that was restarted with another limit has the same digest."""
    run = status.run
    return [attempt for attempt in status.attempts if run is not None and _is_of_run(attempt, run)]


def _is_of_run(attempt: AttemptStatus, run: RunStatus) -> bool:
    return attempt.run == run.digest[:12] and attempt.number >= run.first_attempt


def live_attempt(status: FineTuneJobStatus) -> AttemptStatus | None:
    """The newest attempt, while its end is not recorded."""
    newest = status.attempts[-1] if status.attempts else None
    return newest if newest is not None and newest.end_time is None else None


def open_attempt(draft: Draft, *, number: int, run: str, placement: str, start_time: datetime | None) -> None:
    """Add the record of a new attempt."""
    record = AttemptStatus(number=number, run=run, placement=placement, start_time=start_time)
    draft.update(
        attempts=[*draft.status.attempts, record][-MAX_ATTEMPTS_LISTED:],
        totals=draft.status.totals.model_copy(update={"attempts": number}),
    )


def unrecorded_job(draft: Draft) -> ChildJob | None:
    """The Job of a gang that a pass created and did not get to record."""
    following = draft.status.totals.attempts + 1
    jobs = (draft.observed.attempt_job(number) for number in (following + 1, following))  # one may have been left out
    return next((job for job in jobs if job is not None), None)


def record_what_was_not(draft: Draft) -> None:
    """Open the record of a gang that a pass created and did not get to record, before its Job is deleted.

    Its number would be used twice: pods of both could take themselves for the one that may write checkpoints.
    """
    if live_attempt(draft.status) is not None:
        return
    job, plan = unrecorded_job(draft), draft.status.plan
    if job is not None:
        placement = f"{plan.pool} {plan.nodes}x{plan.gpus_per_node}" if plan is not None else ""
        open_attempt(draft, number=job.attempt, run=job.run, placement=placement, start_time=None)


def change_attempt(draft: Draft, **fields: Any) -> None:
    """Fill in fields of the newest record."""
    *older, newest = draft.status.attempts
    draft.update(attempts=[*older, newest.model_copy(update=fields)])


def end_attempt(draft: Draft, verdict: Verdict | None, *, is_replanned: bool = False) -> None:
    """Close the newest record; None is a success."""
    note_times(draft)
    change_attempt(draft, end_time=draft.now)
    add_active_seconds(draft, last_sign_of(draft))
    if verdict is None:
        return
    words = verdict.termination
    fields: dict[str, Any] = {
        "cause": verdict.cause,
        "exit_code": verdict.exit_code,
        "node": verdict.node,
        "rank": verdict.rank,
        "message": cut(verdict.message, MAX_MESSAGE),
        "replanned": is_replanned,
    }
    if verdict.cause == Cause.APPLICATION and words is not None:
        fields |= {"traceback": cut(words.message, _TRACEBACK_LIMIT)}
        fields |= {"step_to": words.step} if words.step is not None else {}
    change_attempt(draft, **fields)
    totals, saved = draft.status.totals, draft.status.checkpoint.step if draft.status.checkpoint else 0
    without_progress = totals.without_progress + (verdict.cause in DISRUPTIONS)
    if saved > totals.checkpoint_step or verdict.cause in AT_ONCE:
        without_progress = 0
    changes = {
        "by_cause": {**totals.by_cause, verdict.cause: totals.by_cause.get(verdict.cause, 0) + 1},
        "failures": totals.failures
        + is_counted(
            verdict.cause, without_progress=without_progress, is_replanned=is_replanned, replans=totals.replans
        ),
        "without_progress": without_progress,
        "checkpoint_step": saved,
    }
    draft.update(totals=totals.model_copy(update=changes))


def note_saved(draft: Draft) -> None:
    """That the newest attempt got on, when that becomes known after its end was recorded: it does not count then.

    What ended the run counts for ever: the run's conditions speak of it.
    """
    totals, checkpoint, last = draft.status.totals, draft.status.checkpoint, draft.status.attempts[-1]
    if checkpoint is None or checkpoint.step <= totals.checkpoint_step:
        return
    counted, counts = (
        is_counted(last.cause, without_progress=ends, is_replanned=last.replanned, replans=totals.replans)
        for ends in (totals.without_progress, 0)
    )
    is_taken_back = counted and not counts and not draft.is_finished
    changes = {
        "failures": max(totals.failures - is_taken_back, 0),
        "without_progress": 0,
        "checkpoint_step": checkpoint.step,
    }
    draft.update(totals=totals.model_copy(update=changes))


def note_times(draft: Draft) -> None:
    """When the newest attempt's Job began and its pods got their nodes: at its end their objects may be gone."""
    newest = draft.status.attempts[-1]
    job = draft.observed.attempt_job(newest.number)
    begin = begin_of(draft.observed.job, job) if job is not None else None
    if newest.start_time is None and begin is not None:
        change_attempt(draft, start_time=begin)
    bound = [pod.bound_time for pod in everybody(draft, newest.number) if pod.bound_time is not None]
    if len(bound) > newest.bound_pods:
        change_attempt(draft, bound_time=_mean(bound), bound_pods=len(bound))


def everybody(draft: Draft, number: int) -> list[Pod]:
    """The pods of an attempt that are there, and those that were."""
    return [*draft.observed.attempt_pods(number), *draft.observed.vanished_attempt_pods(number)]


def last_sign_of(draft: Draft) -> datetime:
    """When the newest attempt's pods ended, where all of them have said so; else now.

    The operator may look hours later: that is nobody's GPU time.
    """
    end = end_of(everybody(draft, draft.status.attempts[-1].number))
    return min(end, draft.now) if end is not None else draft.now


def end_of(pods: Sequence[Pod]) -> datetime | None:
    """When the last of the pods that had a node ended; None: one of them has not said so, or there are none."""
    times = [pod.finished_time for pod in pods if pod.node]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def add_active_seconds(draft: Draft, until: datetime) -> None:
    """What the newest attempt counts against ``spec.activeDeadlineSeconds``."""
    begin, totals = draft.status.attempts[-1].start_time, draft.status.totals
    if begin is not None and until > begin:
        spent = totals.active_seconds + int((until - begin).total_seconds())
        draft.update(totals=totals.model_copy(update={"active_seconds": spent}))


def _mean(times: Sequence[datetime]) -> datetime:
    first = min(times)
    seconds = sum((time - first).total_seconds() for time in times) / len(times)
    return (first + timedelta(seconds=seconds)).replace(microsecond=0)
