"""The machine is worth what it catches: mistakes that somebody could make in the core, each of which breaks a law.

A mistake stands where the core looks the name up. The stories are always the same, and the list of attempts is so
short that few attempts show what a long life would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from finetune_operator.api.conditions import Condition
from finetune_operator.api.status import FineTuneJobStatus, TotalsStatus
from finetune_operator.constants import Reason
from finetune_operator.core import (
    acceptance,
    attempt_end,
    attempt_record,
    attempts,
    draft,
    progress,
    reconcile,
    restart_policy,
    suspend,
)
from finetune_operator.core.attempt_record import end_attempt
from finetune_operator.core.blame import Pending, Verdict, blame
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import Observed, Pod
from finetune_operator.core.progress import record_checkpoint
from finetune_operator.core.restart_policy import GiveUp, Retry, next_step
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.messages import CheckpointRef
from laws import Law
from machine import JobMachine

pytestmark = pytest.mark.unit

RUNS = 5
SETTINGS = settings(
    max_examples=20,
    stateful_step_count=25,
    database=None,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
Core = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    """The core, with a list of attempts that is soon too short."""
    monkeypatch.setattr(attempt_record, "MAX_ATTEMPTS_LISTED", 2)
    return monkeypatch


# --- mistakes -----------------------------------------------------------------------------------------------------


def asked_to_go_is_gone(core: Core) -> None:
    """A grace period is not waited for."""

    def is_gone(pod: Pod, now: datetime) -> bool:
        return pod.is_terminal or pod.is_vanished or pod.deletion_time is not None

    core.setattr(Pod, "is_gone_by", is_gone)


def an_attempt_follows_a_live_one(core: Core) -> None:
    """Nobody looks whether an end is recorded."""

    def live_attempt(status: FineTuneJobStatus) -> None:
        return None

    core.setattr(attempts, "live_attempt", live_attempt)


def blame_names_no_cause(core: Core) -> None:
    """It sees the end, and that is all."""

    def judge(*args: Any, **kwargs: Any) -> Verdict | Pending | None:
        found = blame(*args, **kwargs)
        return replace(found, cause="") if isinstance(found, Verdict) else found

    core.setattr(attempts, "blame", judge)


def retries_do_not_wait(core: Core) -> None:
    """Whatever failed, and how often."""

    def doubled(first: float, times: int, most: float) -> float:
        return 0.0

    core.setattr(restart_policy, "doubled", doubled)


def the_limit_of_failures_is_not_kept(core: Core) -> None:
    """There is always another attempt."""

    def decide(cause: str, **known: Any) -> Retry | GiveUp:
        return next_step(cause, **known | {"backoff_limit": 1000})

    core.setattr(attempt_end, "next_step", decide)


def sums_are_of_what_is_listed(core: Core) -> None:
    """As if the list of attempts were never cut."""

    def end(draft: Draft, verdict: Verdict | None, *, is_replanned: bool = False) -> None:
        end_attempt(draft, verdict, is_replanned=is_replanned)
        causes = Counter(attempt.cause for attempt in draft.status.attempts if attempt.cause)
        draft.update(totals=draft.status.totals.model_copy(update={"by_cause": dict(causes)}))

    core.setattr(attempt_end, "end_attempt", end)


def a_new_run_counts_from_one(core: Core) -> None:
    """Numbers of attempts are used twice."""
    core.setattr(acceptance, "_TOTALS_OF_A_RUN", (*acceptance._TOTALS_OF_A_RUN, "attempts"))


def totals_are_not_carried_over(core: Core) -> None:
    """Each pass adds up what it sees itself."""

    class ForgetfulDraft(Draft):
        def __init__(self, observed: Observed, now: datetime) -> None:
            super().__init__(observed, now)
            self.update(totals=TotalsStatus())

    core.setattr(reconcile, "Draft", ForgetfulDraft)


def the_last_report_of_a_checkpoint_wins(core: Core) -> None:
    """Also when it is older than what is known."""

    def record(draft: Draft, snapshot: Snapshot, checkpoint: CheckpointRef | None) -> None:
        if checkpoint is not None:
            draft.update(checkpoint=None)
        record_checkpoint(draft, snapshot, checkpoint)

    core.setattr(progress, "record_checkpoint", record)


def texts_are_not_cut(core: Core) -> None:
    """Pods say how long a message is."""

    def cut(text: str, limit: int = 0) -> str:
        return text

    core.setattr(attempt_record, "cut", cut)


def every_condition_is_news(core: Core) -> None:
    """Each pass writes its time."""

    def set_condition(conditions: Sequence[Condition], new: Condition) -> tuple[Condition, ...]:
        kept = tuple(new if each.type == new.type else each for each in conditions)
        return kept if new in kept else (*kept, new)

    core.setattr(draft, "set_condition", set_condition)


def suspended_jobs_run_on(core: Core) -> None:
    """The status says that they are suspended."""

    def stop(draft: Draft) -> None:
        draft.in_progress(Reason.SUSPENDED, "spec.suspend is true")
        draft.say("Suspended", "spec.suspend is true")

    core.setattr(suspend, "stop_everything", stop)


def a_finished_run_is_watched(core: Core) -> None:
    """As if something could still become of it."""

    def tidy_up(draft: Draft) -> None:
        draft.look_again(60)

    core.setattr(reconcile.finished, "tidy_up", tidy_up)
    core.setattr(Draft, "_leaves_something_behind", lambda _: True)


def nobody_looks_again(core: Core) -> None:
    """As if the operator's own status woke it."""

    def look_again(draft: Draft, after: float) -> None:
        pass

    core.setattr(Draft, "look_again", look_again)


CAUGHT_BY = {
    asked_to_go_is_gone: Law.ONE_GANG,
    an_attempt_follows_a_live_one: Law.EVIDENCE,
    blame_names_no_cause: Law.EVIDENCE,
    retries_do_not_wait: Law.CALM,
    the_limit_of_failures_is_not_kept: Law.BOUNDED,
    sums_are_of_what_is_listed: Law.FORWARD,
    a_new_run_counts_from_one: Law.FORWARD,
    totals_are_not_carried_over: Law.FORWARD,
    the_last_report_of_a_checkpoint_wins: Law.FORWARD,
    texts_are_not_cut: Law.BOUNDED,
    every_condition_is_news: Law.REST,
    a_finished_run_is_watched: Law.REST,
    suspended_jobs_run_on: Law.STOPPED,
    nobody_looks_again: Law.FOLLOWED,
}

# --- what the machine makes of them -------------------------------------------------------------------------------


def tell_stories() -> None:
    """Always the same ones."""
    for number in range(RUNS):
        stories = type("Stories", (JobMachine,), {})
        run_state_machine_as_test(seed(number)(stories), settings=SETTINGS)


def test_core_without_mistakes_breaks_no_law() -> None:
    """In the same stories."""
    tell_stories()


@pytest.mark.parametrize(("make", "law"), CAUGHT_BY.items(), ids=[make.__name__ for make in CAUGHT_BY])
def test_mistake_breaks_a_law(core: Core, make: Callable[[Core], None], law: Law) -> None:
    """And it is the law that is meant: a mistake that only crashes would prove nothing."""
    make(core)
    with pytest.raises(AssertionError, match=f"^{law}"):
        tell_stories()
