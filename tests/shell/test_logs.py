"""The reader of logs outlives every failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.core.actions import LogSource
from finetune_operator.errors import Unavailable
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.logs import LogReader
from finetune_operator.shell.object_key import ObjectKey

pytestmark = pytest.mark.unit

KEY = ObjectKey("research", "support")


class BrokenKube(Kube):
    """Fails in every way before it answers."""

    def __init__(self) -> None:
        self.failures: list[Exception] = [Unavailable("no route"), RuntimeError("session is closed")]

    async def get_text(self, path: str, query: Any, *, seconds: float) -> str:
        """A log, at the third attempt."""
        if self.failures:
            raise self.failures.pop(0)
        return '{"kind": "phase", "phase": "train"}'


async def test_reader_goes_on_after_an_error() -> None:
    """Also one that nobody thought of."""
    woken = asyncio.Event()
    reader = LogReader(BrokenKube(), 0.01, lambda key: woken.set())
    reader.follow(KEY, LogSource("support-a1-0-x", "uid"))
    await asyncio.wait_for(woken.wait(), 5)
    report = reader.report(KEY)
    await reader.close()
    assert report is not None
    assert (report.pod_uid, report.phase) == ("uid", "train")
