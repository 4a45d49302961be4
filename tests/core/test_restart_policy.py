"""What follows the end of an attempt."""

from __future__ import annotations

import pytest

from finetune_operator.constants import Cause
from finetune_operator.core.restart_policy import MAX_DELAY_SECONDS, GiveUp, Retry, next_step

pytestmark = pytest.mark.unit

DISRUPTIONS = [Cause.NODE_LOST, Cause.PREEMPTED, Cause.UNKNOWN, Cause.SUSPENDED, Cause.SUPERSEDED]
FAILURES = [Cause.OUT_OF_MEMORY, Cause.HANG, Cause.APPLICATION]


@pytest.mark.parametrize("cause", DISRUPTIONS)
def test_disruptions_are_followed_at_once_however_many_failures_there_were(cause: str) -> None:
    """They are not the job's fault."""
    assert next_step(cause, failures=99, backoff_limit=0) == Retry(delay=0)


@pytest.mark.parametrize("cause", FAILURES)
def test_failures_wait_longer_each_time(cause: str) -> None:
    """10, 20, 40 … seconds, at most five minutes."""
    delays = [next_step(cause, failures, 100) for failures in range(1, 9)]
    assert delays == [Retry(delay) for delay in (10, 20, 40, 80, 160, 300, 300, 300)]
    assert next_step(cause, 100, 100) == Retry(MAX_DELAY_SECONDS)


@pytest.mark.parametrize("cause", FAILURES)
@pytest.mark.parametrize("limit", [0, 3])
def test_failures_beyond_the_limit_end_the_run(cause: str, limit: int) -> None:
    """The limit counts retries, as in a Job."""
    assert isinstance(next_step(cause, limit, limit), Retry) or limit == 0
    decision = next_step(cause, limit + 1, limit)
    assert isinstance(decision, GiveUp)
    assert decision.reason == "BackoffLimitExceeded"
    assert f"backoffLimit {limit}" in decision.remedy


def test_user_errors_end_the_run_at_once() -> None:
    """The same again cannot work."""
    decision = next_step(Cause.USER_ERROR, failures=0, backoff_limit=100)
    assert isinstance(decision, GiveUp)
    assert decision.reason == "UserError"
    assert "spec.runId" in decision.remedy
