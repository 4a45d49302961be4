"""Each line says which job and attempt it speaks of, and is one JSON object."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from finetune_operator.core.actions import LogSource
from finetune_operator.shell.dispatcher import Dispatcher
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.log_lines import about_attempt, about_job, set_up_logging
from finetune_operator.shell.logs import LogReader
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.object_key import ObjectKey

pytestmark = pytest.mark.unit

KEY = ObjectKey("research", "support")
logger = logging.getLogger("finetune_operator.test")


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was written; fails on a line that is no JSON object."""
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_a_line_is_one_json_object_with_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks and tracebacks are inside; what libraries attach for themselves is not shown."""
    set_up_logging("INFO", "json")
    logger.debug("not shown")
    logger.info("first\nsecond %s", "ä", extra={"k8s_ref": {"name": "x"}, "settings": object()})
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("failed")

    first, second = lines(capsys)
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {"level": "INFO", "logger": "finetune_operator.test", "message": "first\nsecond ä"}
    assert "ValueError: bad" in second["exc_info"]


def test_text_is_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """With the job, if there is one."""
    set_up_logging("INFO", "text")
    logger.info("started")
    with about_job(KEY):
        logger.info("created")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO finetune_operator.test -: started")
    assert second.endswith("INFO finetune_operator.test research/support: created")


def test_the_job_is_left_with_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker goes from job to job; attempt 0 is none."""
    set_up_logging("INFO", "json")
    with about_job(KEY):
        about_attempt(0)
        logger.info("1")
        about_attempt(3)
        logger.info("2")
    logger.info("3")
    about_attempt(4)
    logger.info("4")
    fields = [(line.get("job"), line.get("attempt")) for line in lines(capsys)]
    assert fields == [("research/support", None), ("research/support", 3), (None, None), (None, None)]


async def test_a_failed_pass_and_the_reader_it_started_speak_of_its_job(capsys: pytest.CaptureFixture[str]) -> None:
    """The pass of another job at the same time does not mix in."""
    set_up_logging("INFO", "json")
    failed, read = asyncio.Event(), asyncio.Event()

    class BrokenKube(Kube):
        def __init__(self) -> None:
            pass

        async def get_text(self, path: str, query: Any, *, seconds: float) -> str:
            read.set()
            raise RuntimeError("the session is closed")

    reader = LogReader(BrokenKube(), 0.01, lambda key: None)

    async def run_pass(key: ObjectKey) -> float | None:
        await asyncio.sleep(0)
        if key == KEY:
            about_attempt(2)
            reader.follow(key, LogSource("support-a2-0-x", "uid"))
            await asyncio.sleep(0)
            failed.set()
            raise ValueError("bad")
        logger.info("other")
        return None

    dispatcher = Dispatcher(run_pass, Metrics(), has_news=lambda key, **_: True, workers=2, resync_seconds=60)
    dispatcher.start()
    dispatcher.wake(KEY)
    dispatcher.wake(ObjectKey("research", "other"))
    await asyncio.wait_for(failed.wait(), 5)
    await asyncio.wait_for(read.wait(), 5)
    await asyncio.sleep(0.05)
    await dispatcher.stop()
    await reader.close()

    seen = {(line["message"].split(";")[0], line.get("job"), line.get("attempt")) for line in lines(capsys)}
    assert seen == {
        ("the pass failed", "research/support", 2),
        ("the log of support-a2-0-x cannot be read", "research/support", 2),
        ("other", "research/other", None),
    }
