"""What follows the end of an attempt: another one now, another one later, or the end of the run.

Disruptions are not the job's fault: the next attempt follows at once, and they do not count while checkpoints advance.
From the second one in a row that saved no checkpoint on the next one waits, twice as long each time, and from the third
on they count: a job that gets itself evicted does not hold GPUs for ever. What the job caused counts against
``spec.backoffLimit`` and waits as well. What only the user can mend is not tried again, and neither is what has failed
twice in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_operator.api.status import AttemptStatus
from finetune_operator.constants import Cause, Reason
from finetune_operator.core.backoff import doubled

FIRST_DELAY_SECONDS = 10.0
MAX_DELAY_SECONDS = 300.0
JITTER = 0.25
"""A delay is longer by up to this part, so that jobs which failed together do not come back together."""

DISRUPTIONS = frozenset({Cause.NODE_LOST, Cause.PREEMPTED, Cause.NO_DEVICE, Cause.CONTRACT_SKEW, Cause.UNKNOWN})
"""Causes outside the job, or taken for that."""

AT_ONCE = frozenset({Cause.SUSPENDED, Cause.SUPERSEDED})
"""What the user asked for."""

FREE_REPLANS = 3
"""So many ends for lack of memory do not count, as long as each is followed by a plan that needs less."""

PATIENCE = 3
"""Disruptions in a row without a new checkpoint, from which on they count."""

RUN_AGAIN = "then change spec.runId to run again"
MEND_AND_RUN_AGAIN = f"mend what the message names, {RUN_AGAIN}"
"""What is left to a person where the same again cannot work."""


@dataclass(frozen=True)
class Retry:
    """Create the next attempt ``delay`` seconds after the end of the last one (or when its pods are gone, if later)."""

    delay: float


@dataclass(frozen=True)
class GiveUp:
    """The run is over; ``reason`` becomes that of ``Failed`` and ``Stalled``."""

    reason: str
    remedy: str


def is_counted(cause: str, *, without_progress: int, is_replanned: bool, replans: int) -> bool:
    """Whether an end counts against ``spec.backoffLimit``.

    Args:
        cause: a name of ``constants.Cause``.
        without_progress: ends in a row without a new checkpoint, this one included.
        is_replanned: the next attempt needs less memory.
        replans: how often the run was planned anew for lack of memory, this time included.
    """
    if cause in DISRUPTIONS:
        return without_progress >= PATIENCE
    if cause == Cause.OUT_OF_MEMORY:
        return not is_replanned or replans > FREE_REPLANS
    return cause in (Cause.HANG, Cause.APPLICATION)


def is_repeated(attempts: Sequence[AttemptStatus]) -> bool:
    """Whether the newest attempt ended by the same exception at the same step as one of its run before it."""
    newest = attempts[-1] if attempts else None
    if newest is None or newest.cause != Cause.APPLICATION or not newest.traceback:
        return False
    return any(
        older.run == newest.run and older.traceback == newest.traceback and older.step_to == newest.step_to
        for older in attempts[:-1]
    )


def next_step(
    cause: str,
    *,
    failures: int,
    without_progress: int,
    backoff_limit: int,
    is_replanned: bool = False,
    replans: int = 0,
    is_repeated: bool = False,
    jitter: float = 0.0,
) -> Retry | GiveUp:
    """Decide after an attempt ended with ``cause``.

    Args:
        cause: a name of ``constants.Cause``.
        failures: ends that count, this one included.
        without_progress: ends in a row without a new checkpoint, this one included.
        backoff_limit: ``spec.backoffLimit``.
        is_replanned: the next attempt needs less memory than this one.
        replans: how often the run was planned anew for lack of memory, this time included.
        is_repeated: the same exception at the same step ended an attempt before.
        jitter: 0 to 1; see :func:`jitter_of`.
    """
    if cause == Cause.USER_ERROR:
        return GiveUp(Reason.USER_ERROR, MEND_AND_RUN_AGAIN)
    if cause == Cause.DEADLINE_EXCEEDED:
        return deadline_exceeded()
    if is_repeated:
        return GiveUp(
            Reason.REPEATED_FAILURE,
            "the same exception at the same step ended an attempt before: mend its cause, then delete and apply the "
            "FineTuneJob to go on from its checkpoint, or change spec.runId to start anew",
        )
    if is_counted(cause, without_progress=without_progress, is_replanned=is_replanned, replans=replans):
        if failures > backoff_limit:
            return GiveUp(
                Reason.BACKOFF_LIMIT_EXCEEDED,
                f"{failures} failures are more than spec.backoffLimit {backoff_limit}: see status.attempts and the log "
                "of the last attempt's pods, then change spec.runId to run again",
            )
        times = max(failures, without_progress - 1 if cause in DISRUPTIONS else 0)
        return Retry(delay=_doubled(times, jitter))
    if cause in AT_ONCE or is_replanned:
        return Retry(delay=0.0)
    return Retry(delay=_doubled(without_progress - 1, jitter))


def deadline_exceeded() -> GiveUp:
    """The end of a run whose time is used up."""
    return GiveUp(
        Reason.DEADLINE_EXCEEDED,
        "spec.activeDeadlineSeconds is used up; its checkpoint is kept: to go on from it, delete the FineTuneJob and "
        "apply it with a longer spec.activeDeadlineSeconds",
    )


def jitter_of(uid: str, attempt: int) -> float:
    """0 to 1, the same in every pass and after every restart, and different for each job and attempt."""
    digest = hashlib.sha256(f"{uid}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32


def _doubled(times: int, jitter: float) -> float:
    """0, 10, 20, 40 … 300 seconds, and up to a quarter more."""
    return doubled(FIRST_DELAY_SECONDS, times, MAX_DELAY_SECONDS) * (1.0 + JITTER * jitter)
