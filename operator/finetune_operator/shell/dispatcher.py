"""One pass at a time per job, coalesced wake-ups, backoff, requeue, resync.

A wake-up carries nothing but a key: ten events for a job while a pass runs cost one more pass. A pass that fails is
tried again with exponential backoff and jitter; a conflict is tried again at once, because it says that the job has
news.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from finetune_operator.core.backoff import doubled
from finetune_operator.errors import Conflict, KubernetesError, Unavailable
from finetune_operator.shell.kube import cancel_and_wait
from finetune_operator.shell.log_lines import about_job
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.object_key import ObjectKey

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0

Pass = Callable[[ObjectKey], Awaitable[float | None]]
"""Runs one pass; returns seconds until the next one is due, if any."""


@dataclass
class _Entry:
    is_running: bool = False
    is_dirty: bool = False
    """An event came while the pass ran."""
    is_queued: bool = False
    failures: int = 0
    timer: asyncio.TimerHandle | None = None
    due: float = 0.0


class Dispatcher:
    """Owns the queue of keys and the workers."""

    def __init__(self, run_pass: Pass, metrics: Metrics, *, workers: int, resync_seconds: float) -> None:
        self._run_pass = run_pass
        self._metrics = metrics
        metrics.watch_queue(lambda: self._queue.qsize())
        self._workers = workers
        self._resync = resync_seconds
        self._queue: asyncio.Queue[ObjectKey] = asyncio.Queue()
        self._entries: dict[ObjectKey, _Entry] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.last_progress = time.monotonic()
        """When a worker last took or finished a pass, or found nothing to do; liveness looks at it."""

    def start(self) -> None:
        """Start the workers."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._work(), name=f"worker {n}") for n in range(self._workers)]

    async def stop(self) -> None:
        """Stop after the current passes' next await: a pass can be cut anywhere without loss."""
        for task in self._tasks:
            await cancel_and_wait(task)
        for entry in self._entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
        self._tasks.clear()

    def wake(self, key: ObjectKey) -> None:
        """Something about the job may have changed."""
        entry = self._entries.setdefault(key, _Entry())
        if entry.is_running:
            entry.is_dirty = True
        elif not entry.is_queued:
            entry.is_queued = True
            self._queue.put_nowait(key)

    def wake_all(self) -> None:
        """Something that any job may depend on has changed."""
        for key in list(self._entries):
            self.wake(key)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone; a pass that runs is left to finish."""
        entry = self._entries.pop(key, None)
        if entry is not None and entry.timer is not None:
            entry.timer.cancel()

    def is_stuck(self, limit_seconds: float) -> bool:
        """Whether keys wait although no worker has moved for a while."""
        return not self._queue.empty() and time.monotonic() - self.last_progress > limit_seconds

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self.last_progress = time.monotonic()
            entry = self._entries.get(key)
            if entry is None:
                continue
            entry.is_queued, entry.is_running, entry.is_dirty = False, True, False
            with about_job(key):
                delay = await self._attempt(key, entry)
            entry.is_running = False
            self.last_progress = time.monotonic()
            # Also when the job was forgotten meanwhile: a namesake may have been created while the pass found nothing.
            if entry.is_dirty:
                self.wake(key)
            if self._entries.get(key) is entry:
                self._wake_later(key, entry, delay)

    async def _attempt(self, key: ObjectKey, entry: _Entry) -> float:
        begun, failure = time.monotonic(), ""
        try:
            requeue_after = await self._run_pass(key)
        except Conflict as conflict:
            failure = type(conflict).__name__
            logger.info("pass dropped: %s", conflict)
            entry.failures += 1
            return 0.05 * min(entry.failures, 20)
        except Exception as error:
            failure = type(error).__name__ if isinstance(error, KubernetesError) else "Bug"
            entry.failures += 1
            delay: float = self._backoff(entry.failures)
            if isinstance(error, Unavailable):
                delay = max(delay, error.retry_after or 0.0)
                logger.warning("%s; next try in %.1f s", error, delay)
            else:
                logger.exception("the pass failed; next try in %.1f s", delay)
            return delay
        finally:
            self._metrics.pass_ended(time.monotonic() - begun, failure)
        entry.failures = 0
        resync = self._resync * random.uniform(1.0, 1.2)
        return resync if requeue_after is None else min(requeue_after, resync)

    def _backoff(self, failures: int) -> float:
        ceiling: float = doubled(FIRST_BACKOFF_SECONDS, failures, MAX_BACKOFF_SECONDS)
        return ceiling * random.uniform(0.5, 1.0)

    def _wake_later(self, key: ObjectKey, entry: _Entry, delay: float) -> None:
        """Replace the timer: the newest pass knows best when to look again."""
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = asyncio.get_running_loop().call_later(delay, self.wake, key)
