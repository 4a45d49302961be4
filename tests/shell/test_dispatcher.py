"""The queue of passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from finetune_operator.errors import Conflict, Unavailable
from finetune_operator.shell import dispatcher as dispatcher_module
from finetune_operator.shell.dispatcher import BURST_SECONDS, FIRST_BACKOFF_SECONDS, Dispatcher, HasNews
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.object_key import ObjectKey

pytestmark = pytest.mark.unit

BAD, GOOD = ObjectKey("team", "bad"), ObjectKey("team", "good")


def test_a_job_that_fails_for_days_keeps_its_worker_alive() -> None:
    """Thousands of failures in a row: the worker still serves others, and the job is tried again when it is woken."""
    passes: list[ObjectKey] = []

    async def run_pass(key: ObjectKey) -> float | None:
        passes.append(key)
        if key == BAD:
            raise RuntimeError("the quota is exhausted")
        return None

    async def story() -> None:
        dispatcher = Dispatcher(run_pass, Metrics(), has_news=lambda key, **_: True, workers=1, resync_seconds=300)
        dispatcher.start()
        dispatcher.wake(BAD)
        await asyncio.sleep(0.05)
        dispatcher._entries[BAD].failures = 5000
        for key in (BAD, GOOD, BAD):
            dispatcher.wake(key)
            await asyncio.sleep(0.05)
        await dispatcher.stop()

    asyncio.run(story())
    assert passes == [BAD, BAD, GOOD, BAD]


def test_conflicts_do_not_make_the_next_failure_cost_a_minute() -> None:
    """A job that changes all the time is tried again as soon as any other when a read of it fails."""
    begun: list[float] = []
    tried_again = asyncio.Event()

    async def run_pass(_: ObjectKey) -> float | None:
        begun.append(time.monotonic())
        if len(begun) <= 4:
            raise Conflict("it has changed")
        if len(begun) == 6:
            tried_again.set()
        raise Unavailable("GET: 503", 503)

    async def story() -> None:
        dispatcher = Dispatcher(run_pass, Metrics(), has_news=lambda key, **_: True, workers=1, resync_seconds=300)
        dispatcher.start()
        dispatcher.wake(BAD)
        await tried_again.wait()
        await dispatcher.stop()

    asyncio.run(story())
    assert begun[5] - begun[4] < 2 * FIRST_BACKOFF_SECONDS


def passes_of(wakes: Callable[[Dispatcher], None], has_news: HasNews = lambda key, **_: True) -> list[ObjectKey]:
    """What one worker looks at after these calls, in its order."""
    passes: list[ObjectKey] = []

    async def run_pass(key: ObjectKey) -> float | None:
        passes.append(key)
        return None

    async def story() -> None:
        dispatcher = Dispatcher(run_pass, Metrics(), has_news=has_news, workers=1, resync_seconds=300)
        wakes(dispatcher)
        dispatcher.start()
        await asyncio.sleep(4 * BURST_SECONDS)
        await dispatcher.stop()

    asyncio.run(story())
    return passes


def test_events_that_come_in_a_burst_cost_one_pass() -> None:
    """Also when the job is woken at once among them: that pass sees what they were about."""

    def burst(dispatcher: Dispatcher) -> None:
        for _ in range(5):
            dispatcher.wake_soon(BAD)
            dispatcher.wake_soon(GOOD)
        dispatcher.wake(GOOD)

    assert passes_of(burst) == [GOOD, BAD]


def test_a_job_that_others_wait_for_goes_first_and_only_once() -> None:
    """Wherever it stood before."""

    def rush(dispatcher: Dispatcher) -> None:
        dispatcher.wake(BAD)
        dispatcher.wake(GOOD)
        dispatcher.wake_first(GOOD)

    assert passes_of(rush) == [GOOD, BAD]


def test_a_job_that_others_wait_for_goes_first_also_when_it_was_just_looked_at() -> None:
    """Its own pass was running when they began to wait."""
    passes: list[ObjectKey] = []

    async def run_pass(key: ObjectKey) -> float | None:
        passes.append(key)
        if passes == [BAD]:
            dispatcher.wake(GOOD)
            dispatcher.wake_first(BAD)
        return None

    async def story() -> None:
        dispatcher.wake(BAD)
        dispatcher.start()
        await asyncio.sleep(0.05)
        await dispatcher.stop()

    dispatcher = Dispatcher(run_pass, Metrics(), has_news=lambda key, **_: True, workers=1, resync_seconds=300)
    asyncio.run(story())
    assert passes == [BAD, BAD, GOOD]


def test_a_job_that_is_forgotten_is_not_woken_by_what_was_about_to() -> None:
    """Nor is anything left of it."""

    def forget(dispatcher: Dispatcher) -> None:
        dispatcher.wake_soon(BAD)
        dispatcher.forget(BAD)

    assert passes_of(forget) == []


def test_what_was_read_meanwhile_wakes_nobody() -> None:
    """The event came late, or shows what the last pass wrote."""

    def burst(dispatcher: Dispatcher) -> None:
        dispatcher.wake_soon(BAD)
        dispatcher.wake_soon(GOOD)

    assert passes_of(burst, has_news=lambda key, **_: key == GOOD) == [GOOD]


def test_routine_waits_for_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass for both when something happens; its own pass when nothing does."""
    monkeypatch.setattr(dispatcher_module, "LEISURE_SECONDS", 2 * BURST_SECONDS)

    def routine(dispatcher: Dispatcher) -> None:
        dispatcher.wake_at_leisure(GOOD)
        dispatcher.wake_at_leisure(BAD)
        dispatcher.wake_soon(BAD)

    assert passes_of(routine) == [BAD, GOOD]


def test_routine_is_looked_at_when_its_time_has_come_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a burst is over that was about nothing; nor when a pass has read it meanwhile."""
    monkeypatch.setattr(dispatcher_module, "LEISURE_SECONDS", 3 * BURST_SECONDS)
    monkeypatch.setattr(dispatcher_module, "LEISURE_SECONDS_PER_JOB", 0)
    asked: list[bool] = []

    def has_news(key: ObjectKey, *, or_routine: bool = False) -> bool:
        asked.append(or_routine)
        return or_routine and key == GOOD

    def both(dispatcher: Dispatcher) -> None:
        for key in (GOOD, BAD):
            dispatcher.wake_at_leisure(key)
            dispatcher.wake_soon(key)

    assert passes_of(both, has_news) == [GOOD]
    assert asked == [False, False, True, True]


@pytest.mark.parametrize(("longest", "first"), [(60 * BURST_SECONDS, [BAD]), (2 * BURST_SECONDS, [BAD, GOOD])])
def test_the_more_jobs_begin_the_longer_their_routine_waits(
    monkeypatch: pytest.MonkeyPatch, longest: float, first: list[ObjectKey]
) -> None:
    """What comes after it takes longer as well; but there is an end to that."""
    monkeypatch.setattr(dispatcher_module, "LEISURE_SECONDS", 2 * BURST_SECONDS)
    monkeypatch.setattr(dispatcher_module, "LEISURE_SECONDS_PER_JOB", 60 * BURST_SECONDS)
    monkeypatch.setattr(dispatcher_module, "MAX_LEISURE_SECONDS", longest)

    def routine(dispatcher: Dispatcher) -> None:
        dispatcher.wake_at_leisure(BAD)
        dispatcher.wake_at_leisure(GOOD)

    assert passes_of(routine) == first
