"""The queue of passes."""

from __future__ import annotations

import asyncio

import pytest

from finetune_operator.shell.dispatcher import Dispatcher
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
        dispatcher = Dispatcher(run_pass, Metrics(), workers=1, resync_seconds=300)
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
