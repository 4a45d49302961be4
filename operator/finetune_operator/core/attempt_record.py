"""Entries of ``status.attempts``: opened with an attempt, closed with its verdict, never rewritten afterwards.

The list keeps the newest ten; numbers and counts by cause live in ``status.totals``, so nothing is lost with an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.status import AttemptStatus, FineTuneJobStatus
from finetune_operator.constants import MAX_ATTEMPTS_LISTED, MAX_MESSAGE, Cause
from finetune_operator.core.blame import Verdict
from finetune_operator.core.draft import Draft, cut
from finetune_operator.core.observed import Pod
from finetune_operator.core.restart_policy import AT_ONCE, DISRUPTIONS, is_counted

_TRACEBACK_LIMIT = 512


def last_attempt(status: FineTuneJobStatus) -> AttemptStatus | None:
    """The newest attempt of the current run."""
    newest = status.attempts[-1] if status.attempts else None
    if newest is None or status.run is None or newest.run != status.run.digest[:12]:
        return None
    return newest


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


def change_attempt(draft: Draft, **fields: Any) -> None:
    """Fill in fields of the newest record."""
    *older, newest = draft.status.attempts
    draft.update(attempts=[*older, newest.model_copy(update=fields)])


def end_attempt(draft: Draft, verdict: Verdict | None, *, is_replanned: bool = False) -> None:
    """Close the newest record; None is a success."""
    note_times(draft)
    change_attempt(draft, end_time=draft.now)
    spent = draft.status.totals.active_seconds + active_seconds(draft.status.attempts[-1], draft.now)
    draft.update(totals=draft.status.totals.model_copy(update={"active_seconds": spent}))
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
        + is_counted(verdict.cause, without_progress=without_progress, is_replanned=is_replanned),
        "without_progress": without_progress,
        "checkpoint_step": saved,
    }
    draft.update(totals=totals.model_copy(update=changes))


def note_times(draft: Draft) -> None:
    """When the newest attempt's Job began and its pods got their nodes: at its end their objects may be gone."""
    newest = draft.status.attempts[-1]
    job = draft.observed.attempt_job(newest.number)
    if newest.start_time is None and job is not None and not job.is_suspended:
        change_attempt(draft, start_time=job.start_time or job.creation_time)
    bound = [pod.bound_time for pod in everybody(draft, newest.number) if pod.bound_time is not None]
    if len(bound) > newest.bound_pods:
        change_attempt(draft, bound_time=_mean(bound), bound_pods=len(bound))


def everybody(draft: Draft, number: int) -> list[Pod]:
    """The pods of an attempt that are there, and those that were."""
    return [*draft.observed.attempt_pods(number), *draft.observed.vanished_attempt_pods(number)]


def active_seconds(attempt: AttemptStatus, now: datetime) -> int:
    """What an attempt counts against ``spec.activeDeadlineSeconds``."""
    if attempt.start_time is None:
        return 0
    return max(int(((attempt.end_time or now) - attempt.start_time).total_seconds()), 0)


def _mean(times: Sequence[datetime]) -> datetime:
    first = min(times)
    seconds = sum((time - first).total_seconds() for time in times) / len(times)
    return (first + timedelta(seconds=seconds)).replace(microsecond=0)
