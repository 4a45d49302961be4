"""What follows the end of an attempt: another one now, another one later, or the end of the run.

Disruptions are not the job's fault and never count. What the job caused counts against ``spec.backoffLimit`` and
waits, because the same failure at once again helps nobody. What only the user can mend is not tried again.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.constants import Cause, Reason

FIRST_DELAY_SECONDS = 10.0
MAX_DELAY_SECONDS = 300.0

COUNTED = frozenset({Cause.OUT_OF_MEMORY, Cause.HANG, Cause.APPLICATION})
"""Causes that count against ``spec.backoffLimit``."""


@dataclass(frozen=True)
class Retry:
    """Create the next attempt ``delay`` seconds after the end of the last one (or when its pods are gone, if later)."""

    delay: float


@dataclass(frozen=True)
class GiveUp:
    """The run is over; ``reason`` becomes that of ``Failed`` and ``Stalled``."""

    reason: str
    remedy: str


def next_step(cause: str, failures: int, backoff_limit: int) -> Retry | GiveUp:
    """Decide after an attempt ended with ``cause``; ``failures`` includes it when it counts."""
    if cause == Cause.USER_ERROR:
        return GiveUp(Reason.USER_ERROR, "mend what the message names, then change spec.runId to run again")
    if cause in COUNTED and failures > backoff_limit:
        return GiveUp(
            Reason.BACKOFF_LIMIT_EXCEEDED,
            f"{failures} failures are more than spec.backoffLimit {backoff_limit}: see the log of the last attempt's "
            "pods, then change spec.runId to run again",
        )
    if cause in COUNTED:
        return Retry(delay=min(FIRST_DELAY_SECONDS * 2 ** (failures - 1), MAX_DELAY_SECONDS))
    return Retry(delay=0.0)
