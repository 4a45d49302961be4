"""What follows the end of an attempt: another one now, another one later, or the end of the run.

Disruptions are not the job's fault and never count; the next attempt follows at once. From the second one in a row
that saved no checkpoint on it waits, twice as long each time, so that a job that gets itself evicted does not hold GPUs
in a loop. What the job caused counts against ``spec.backoffLimit`` and waits as well. What only the user can mend is
not tried again.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.constants import Cause, Reason

FIRST_DELAY_SECONDS = 10.0
MAX_DELAY_SECONDS = 300.0

COUNTED = frozenset({Cause.OUT_OF_MEMORY, Cause.HANG, Cause.APPLICATION})
"""Causes that count against ``spec.backoffLimit``."""


AT_ONCE = frozenset({Cause.SUSPENDED, Cause.SUPERSEDED})
"""What the user asked for."""

PATIENCE = 3
"""Unknown ends in a row without a new checkpoint, from which on they count."""


@dataclass(frozen=True)
class Retry:
    """Create the next attempt ``delay`` seconds after the end of the last one (or when its pods are gone, if later)."""

    delay: float


@dataclass(frozen=True)
class GiveUp:
    """The run is over; ``reason`` becomes that of ``Failed`` and ``Stalled``."""

    reason: str
    remedy: str


def is_counted(cause: str, without_progress: int) -> bool:
    """Whether an end counts against ``spec.backoffLimit``.

    ``Unknown`` is taken for a disruption until it has come three times in a row without a new checkpoint: then it is
    more likely that the job itself is to blame.
    """
    return cause in COUNTED or (cause == Cause.UNKNOWN and without_progress >= PATIENCE)


def next_step(cause: str, *, failures: int, without_progress: int, backoff_limit: int) -> Retry | GiveUp:
    """Decide after an attempt ended with ``cause``.

    Args:
        cause: a name of ``constants.Cause``.
        failures: ends that count, this one included.
        without_progress: ends in a row without a new checkpoint, this one included.
        backoff_limit: ``spec.backoffLimit``.
    """
    if cause == Cause.USER_ERROR:
        return GiveUp(Reason.USER_ERROR, "mend what the message names, then change spec.runId to run again")
    if is_counted(cause, without_progress):
        if failures > backoff_limit:
            return GiveUp(
                Reason.BACKOFF_LIMIT_EXCEEDED,
                f"{failures} failures are more than spec.backoffLimit {backoff_limit}: see the log of the last "
                "attempt's pods, then change spec.runId to run again",
            )
        return Retry(delay=_doubled(failures))
    if cause in AT_ONCE:
        return Retry(delay=0.0)
    return Retry(delay=_doubled(without_progress - 1))


def _doubled(times: int) -> float:
    """0, 10, 20, 40 … 300 seconds."""
    return min(FIRST_DELAY_SECONDS * 2.0 ** (times - 1), MAX_DELAY_SECONDS) if times > 0 else 0.0
