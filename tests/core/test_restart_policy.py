"""What follows the end of an attempt."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api.status import AttemptStatus
from finetune_operator.constants import Cause
from finetune_operator.core.restart_policy import (
    MAX_DELAY_SECONDS,
    GiveUp,
    Retry,
    is_counted,
    is_repeated,
    jitter_of,
    next_step,
)

pytestmark = pytest.mark.unit

DISRUPTIONS = [Cause.NODE_LOST, Cause.PREEMPTED, Cause.NO_DEVICE, Cause.CONTRACT_SKEW, Cause.UNKNOWN]
FAILURES = [Cause.OUT_OF_MEMORY, Cause.HANG, Cause.APPLICATION]


def decide(
    cause: str, *, failures: int = 0, without_progress: int = 0, limit: int = 3, **fields: Any
) -> Retry | GiveUp:
    return next_step(cause, failures=failures, without_progress=without_progress, backoff_limit=limit, **fields)


@pytest.mark.parametrize("cause", [*DISRUPTIONS, Cause.SUSPENDED, Cause.SUPERSEDED])
def test_a_disruption_after_a_checkpoint_is_followed_at_once_however_many_there_were(cause: str) -> None:
    """They are not the job's fault."""
    assert decide(cause, failures=99, limit=0) == Retry(delay=0)


@pytest.mark.parametrize("cause", DISRUPTIONS)
def test_disruptions_count_from_the_third_in_a_row_without_a_checkpoint(cause: str) -> None:
    """A blocked port, or a pod that overfills its disk, looks like a disruption, again and again."""
    assert decide(cause, failures=9, without_progress=1, limit=0) == Retry(delay=0)
    assert decide(cause, failures=9, without_progress=2, limit=0) == Retry(delay=10)
    assert isinstance(decide(cause, failures=1, without_progress=3, limit=0), GiveUp)
    assert decide(cause, failures=1, without_progress=3, limit=1) == Retry(delay=20)


def test_disruptions_without_a_checkpoint_in_between_wait_longer_each_time() -> None:
    """No loop that holds GPUs."""
    delays = [decide(Cause.PREEMPTED, failures=n - 2, without_progress=n, limit=99) for n in range(1, 9)]
    assert delays == [Retry(delay) for delay in (0, 10, 20, 40, 80, 160, 300, 300)]


def test_a_plan_with_less_memory_is_tried_at_once_and_does_not_count() -> None:
    """It is another plan; when there is none, it is the job's failure."""
    assert decide(Cause.OUT_OF_MEMORY, is_replanned=True, limit=0) == Retry(delay=0)
    assert not is_counted(Cause.OUT_OF_MEMORY, without_progress=9, is_replanned=True, replans=3)
    assert is_counted(Cause.OUT_OF_MEMORY, without_progress=0, is_replanned=False, replans=0)


def test_a_plan_with_less_memory_counts_from_the_fourth_on() -> None:
    """It is tried all the same, after a pause."""
    assert decide(Cause.OUT_OF_MEMORY, is_replanned=True, replans=3, limit=0) == Retry(delay=0)
    assert is_counted(Cause.OUT_OF_MEMORY, without_progress=0, is_replanned=True, replans=4)
    assert decide(Cause.OUT_OF_MEMORY, is_replanned=True, replans=4, failures=1, limit=1) == Retry(delay=10)
    assert isinstance(decide(Cause.OUT_OF_MEMORY, is_replanned=True, replans=4, failures=1, limit=0), GiveUp)


def test_jitter_only_adds_and_differs_from_job_to_job() -> None:
    """At most a quarter, the same whenever it is asked for."""
    spread = {jitter_of(f"uid-{n}", 1) for n in range(50)}
    assert len(spread) == 50
    assert all(0 <= value < 1 for value in spread)
    assert jitter_of("uid-1", 1) == jitter_of("uid-1", 1) != jitter_of("uid-1", 2)
    assert decide(Cause.HANG, failures=1, jitter=1.0) == Retry(delay=12.5)


def _ended_at(step: int | None, traceback: str, *, cause: str = Cause.APPLICATION, run: str = "r") -> AttemptStatus:
    return AttemptStatus(number=1, run=run, cause=cause, step_to=step, traceback=traceback)


@pytest.mark.parametrize(
    ("older", "expected"),
    [
        ([_ended_at(7, "KeyError: 'x'")], True),
        ([_ended_at(7, "KeyError: 'x'"), _ended_at(9, "", cause=Cause.PREEMPTED)], True),
        ([_ended_at(6, "KeyError: 'x'")], False),
        ([_ended_at(7, "KeyError: 'y'")], False),
        ([_ended_at(7, "KeyError: 'x'", run="another")], False),
        ([], False),
    ],
    ids=["same", "same-with-a-preemption-between", "other-step", "other-exception", "other-run", "first"],
)
def test_the_same_exception_at_the_same_step_twice_is_a_repetition(older: list[AttemptStatus], expected: bool) -> None:
    """Data order and random numbers are the same after a resume: a third attempt would meet it again."""
    assert is_repeated([*older, _ended_at(7, "KeyError: 'x'")]) == expected


def test_a_repetition_ends_the_run_before_its_limit() -> None:
    """And keeps its checkpoint."""
    decision = decide(Cause.APPLICATION, failures=2, limit=100, is_repeated=True)
    assert isinstance(decision, GiveUp)
    assert decision.reason == "RepeatedFailure"


def test_the_deadline_ends_the_run() -> None:
    """The remedy says how to go on from the checkpoint."""
    decision = decide(Cause.DEADLINE_EXCEEDED)
    assert isinstance(decision, GiveUp)
    assert decision.reason == "DeadlineExceeded"
    assert "activeDeadlineSeconds" in decision.remedy


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
