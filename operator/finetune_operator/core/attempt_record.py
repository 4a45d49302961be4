"""Entries of ``status.attempts``: opened with an attempt, closed with its verdict, never rewritten afterwards.

The list keeps the newest ten; numbers and counts by cause live in ``status.totals``, so nothing is lost with an entry.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.api.status import AttemptStatus, FineTuneJobStatus
from finetune_operator.constants import MAX_ATTEMPTS_LISTED, MAX_MESSAGE
from finetune_operator.core.blame import Verdict
from finetune_operator.core.draft import Draft, cut
from finetune_operator.core.restart_policy import AT_ONCE, is_counted


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


def end_attempt(draft: Draft, verdict: Verdict | None) -> None:
    """Close the newest record; None is a success."""
    if verdict is None:
        change_attempt(draft, end_time=draft.now)
        return
    fields: dict[str, Any] = {
        "end_time": draft.now,
        "cause": verdict.cause,
        "exit_code": verdict.exit_code,
        "node": verdict.node,
        "rank": verdict.rank,
        "message": cut(verdict.message, MAX_MESSAGE),
    }
    change_attempt(draft, **fields)
    totals, saved = draft.status.totals, draft.status.checkpoint.step if draft.status.checkpoint else 0
    without_progress = 0 if saved > totals.checkpoint_step or verdict.cause in AT_ONCE else totals.without_progress + 1
    changes = {
        "by_cause": {**totals.by_cause, verdict.cause: totals.by_cause.get(verdict.cause, 0) + 1},
        "failures": totals.failures + is_counted(verdict.cause, without_progress),
        "without_progress": without_progress,
        "checkpoint_step": saved,
    }
    draft.update(totals=totals.model_copy(update=changes))
