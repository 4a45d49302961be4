"""kopf's watches: those that end by themselves, and sessions that are refused."""

from __future__ import annotations

import asyncio
import time

import kopf
import pytest

from finetune_operator.shell import watch_session
from finetune_operator.shell.watch_session import LoginPauses, open_session
from finetune_operator.shell.watchers import Watchers

pytestmark = pytest.mark.unit

NAME = "watcher for finetunejobs.v1alpha1.finetune-operator.io@None"


async def fails() -> None:
    """As a watch does that kopf gives up."""
    raise RuntimeError("Ran out of valid credentials")


async def test_a_watch_that_failed_is_named() -> None:
    """Those that run are not, nor those that were told to end, nor other tasks."""
    watchers = Watchers()
    alive = asyncio.create_task(asyncio.sleep(60), name="watcher for pods.v1@None")
    told = asyncio.create_task(asyncio.sleep(60), name="watcher for jobs.v1.batch@None")
    other, failing = asyncio.create_task(fails(), name="a pass"), asyncio.create_task(fails(), name=NAME)
    assert watchers.complaint() == ""
    told.cancel()
    await asyncio.wait([other, failing, told])
    assert watchers.complaint() == f"the {NAME} has ended"

    again = asyncio.create_task(asyncio.sleep(60), name=NAME)
    assert watchers.complaint() == ""
    for task in (alive, again):
        task.cancel()
    for failed in (other, failing):
        assert failed.exception() is not None


async def test_no_session_equals_another() -> None:
    """kopf would not take it after the first one was refused, and would never watch again."""
    credentials = kopf.ConnectionInfo(server="http://127.0.0.1:1", token="the same")
    first, second = open_session(credentials), open_session(credentials)
    assert first != second
    for session in (first, second):
        await session.aiohttp_session.close()


async def test_sessions_that_are_refused_come_more_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one comes at once, and so does one after a calm time."""
    monkeypatch.setattr(watch_session, "FIRST_PAUSE_SECONDS", 0.02)
    pauses, waits = LoginPauses(), []
    for calm in (60.0, 60.0, 60.0, 0.0):
        monkeypatch.setattr(watch_session, "CALM_SECONDS", calm)
        begun = time.monotonic()
        await pauses.wait()
        waits.append(time.monotonic() - begun)
    first, second, third, after_a_calm_time = waits
    assert max(first, after_a_calm_time) < 0.02 <= second < 0.04 <= third
