"""What follows the end of an attempt."""

from __future__ import annotations

import pytest

from finetune_operator.constants import Cause
from finetune_operator.core.restart_policy import MAX_DELAY_SECONDS, GiveUp, Retry, next_step

pytestmark = pytest.mark.unit

DISRUPTIONS = [Cause.NODE_LOST, Cause.PREEMPTED, Cause.NO_DEVICE, Cause.UNKNOWN]
FAILURES = [Cause.OUT_OF_MEMORY, Cause.HANG, Cause.APPLICATION]


def decide(cause: str, *, failures: int = 0, without_progress: int = 0, limit: int = 3) -> Retry | GiveUp:
    return next_step(cause, failures=failures, without_progress=without_progress, backoff_limit=limit)


@pytest.mark.parametrize("cause", [*DISRUPTIONS, Cause.SUSPENDED, Cause.SUPERSEDED])
def test_a_disruption_after_a_checkpoint_is_followed_at_once_however_many_there_were(cause: str) -> None:
    """They are not the job's fault."""
    assert decide(cause, failures=99, limit=0) == Retry(delay=0)


@pytest.mark.parametrize("cause", [Cause.NODE_LOST, Cause.PREEMPTED])
def test_disruptions_without_a_checkpoint_in_between_wait_longer_each_time_and_never_end_the_run(cause: str) -> None:
    """A pod that overfills its disk is evicted each time: no loop that holds GPUs, and no verdict either."""
    delays = [decide(cause, without_progress=times, limit=0) for times in range(1, 9)]
    assert delays == [Retry(delay) for delay in (0, 10, 20, 40, 80, 160, 300, 300)]


def test_unknown_ends_count_from_the_third_in_a_row_without_a_checkpoint() -> None:
    """A blocked port looks like a disruption, again and again."""
    assert decide(Cause.UNKNOWN, failures=9, without_progress=2, limit=0) == Retry(delay=10)
    assert isinstance(decide(Cause.UNKNOWN, failures=1, without_progress=3, limit=0), GiveUp)
    assert decide(Cause.UNKNOWN, failures=1, without_progress=3, limit=1) == Retry(delay=10)


@pytest.mark.parametrize("cause", FAILURES)
def test_failures_wait_longer_each_time(cause: str) -> None:
    """10, 20, 40 … seconds, at most five minutes."""
    delays = [decide(cause, failures=failures, limit=100) for failures in range(1, 9)]
    assert delays == [Retry(delay) for delay in (10, 20, 40, 80, 160, 300, 300, 300)]
    assert decide(cause, failures=100, limit=100) == Retry(MAX_DELAY_SECONDS)


@pytest.mark.parametrize("cause", FAILURES)
@pytest.mark.parametrize("limit", [0, 3])
def test_failures_beyond_the_limit_end_the_run(cause: str, limit: int) -> None:
    """The limit counts retries, as in a Job."""
    assert isinstance(decide(cause, failures=limit, limit=limit), Retry)
    decision = decide(cause, failures=limit + 1, limit=limit)
    assert isinstance(decision, GiveUp)
    assert decision.reason == "BackoffLimitExceeded"
    assert f"backoffLimit {limit}" in decision.remedy


def test_user_errors_end_the_run_at_once() -> None:
    """The same again cannot work."""
    decision = decide(Cause.USER_ERROR, limit=100)
    assert isinstance(decision, GiveUp)
    assert decision.reason == "UserError"
    assert "spec.runId" in decision.remedy
