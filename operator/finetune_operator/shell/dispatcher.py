"""One pass at a time per job, coalesced wake-ups, backoff, requeue, resync.

A wake-up carries nothing but a key: ten events for a job while a pass runs cost one more pass. A pass that fails is
tried again with exponential backoff and jitter; a conflict is tried again at once, because it says that the job has
news, and is no reason to wait longer after the next failure.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from finetune_operator.core.backoff import doubled
from finetune_operator.errors import Conflict, KubernetesError, Unavailable
from finetune_operator.shell.kube import cancel_and_wait
from finetune_operator.shell.log_lines import about_job
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.object_key import ObjectKey

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
BURST_SECONDS = 0.05
"""What the controllers of the cluster do to a gang comes as some events per pod, within about this time …"""
BURST_SECONDS_PER_JOB = 0.005
"""… and the more jobs there are that something happens to, the longer it takes them …"""
MAX_BURST_SECONDS = 0.5
"""… up to this. A pass for every single event would keep the API server from what everybody waits for."""
LEISURE_SECONDS = 15.0
"""For what nobody has to act upon: what comes after it, a stage that ends or a gang that runs, mostly comes sooner …"""
LEISURE_SECONDS_PER_JOB = 0.2
"""… and where many jobs begin at once that, too, takes longer …"""
MAX_LEISURE_SECONDS = 60.0
"""… up to this."""

_FIRST, _IN_TURN = 0, 1

Pass = Callable[[ObjectKey], Awaitable[float | None]]
"""Runs one pass; returns seconds until the next one is due, if any."""


class HasNews(Protocol):
    """Asked when it is time for a pass."""

    def __call__(self, key: ObjectKey, *, or_routine: bool = False) -> bool:
        """Whether events have shown what no pass has read."""


@dataclass
class _Entry:
    is_running: bool = False
    is_dirty: bool = False
    """An event came while the pass ran …"""
    is_urgent: bool = False
    """… and others wait for what follows from it."""
    is_queued: bool = False
    failures: int = 0
    """Passes that failed since the last one that did not …"""
    conflicts: int = 0
    """… and those that found something newer than they had read."""
    timer: asyncio.TimerHandle | None = None
    """For the time at which the last pass wanted to look again."""


class _Delayed:
    """Jobs that are looked at when more has happened, and those that were in the meantime are not."""

    def __init__(self, then: Callable[[ObjectKey], None]) -> None:
        self._then = then
        self._timers: dict[ObjectKey, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def add(self, key: ObjectKey, seconds: float) -> None:
        """One that waits already waits no longer than before."""
        if key not in self._timers:
            self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._is_over, key)

    def cancel(self, key: ObjectKey) -> None:
        """It has been looked at, or is gone."""
        if key in self._timers:
            self._timers.pop(key).cancel()

    def _is_over(self, key: ObjectKey) -> None:
        del self._timers[key]
        self._then(key)


class Dispatcher:
    """Owns the queue of keys and the workers."""

    def __init__(
        self, run_pass: Pass, metrics: Metrics, *, has_news: HasNews, workers: int, resync_seconds: float
    ) -> None:
        self._run_pass = run_pass
        self._has_news = has_news
        self._metrics = metrics
        metrics.watch_queue(lambda: self._queue.qsize())
        self._workers = workers
        self._resync = resync_seconds
        self._queue: asyncio.PriorityQueue[tuple[int, int, ObjectKey]] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._soon = _Delayed(self._wake_for_news)
        """What has just begun to change …"""
        self._at_leisure = _Delayed(functools.partial(self._wake_for_news, or_routine=True))
        """… and what nobody has to act upon."""
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
        for key, entry in self._entries.items():
            self._cancel_timers(key, entry)
        self._tasks.clear()

    def wake(self, key: ObjectKey) -> None:
        """Something about the job may have changed."""
        entry = self._entries.setdefault(key, _Entry())
        if entry.is_running:
            entry.is_dirty = True
        elif not entry.is_queued:
            self._enqueue(key, entry, _IN_TURN)

    def knows(self, key: ObjectKey) -> bool:
        """Whether the job is looked at from time to time."""
        return key in self._entries

    def wake_first(self, key: ObjectKey) -> None:
        """Something has changed that others wait for as well: before all who only wait for themselves."""
        entry = self._entries.setdefault(key, _Entry())
        if entry.is_running:
            entry.is_dirty = entry.is_urgent = True
        else:
            self._enqueue(key, entry, _FIRST)  # a second place in the queue, if it had one; that one is skipped

    def _enqueue(self, key: ObjectKey, entry: _Entry, rank: int) -> None:
        entry.is_queued = True
        self._queue.put_nowait((rank, next(self._numbers), key))

    def wake_soon(self, key: ObjectKey) -> None:
        """Something may have changed, and changes of this kind come in bursts: one pass for all of a moment.

        None, if by then a pass has read what it was, or if it was that pass itself that changed it.
        """
        entry = self._entries.setdefault(key, _Entry())
        if not entry.is_queued:
            busy = self._queue.qsize() + len(self._soon)
            self._soon.add(key, min(BURST_SECONDS + BURST_SECONDS_PER_JOB * busy, MAX_BURST_SECONDS))

    def wake_at_leisure(self, key: ObjectKey) -> None:
        """The same for what goes as it should: more is going to happen, and the pass for that sees this as well."""
        entry = self._entries.setdefault(key, _Entry())
        if not entry.is_queued:
            busy = len(self._at_leisure)
            self._at_leisure.add(key, min(LEISURE_SECONDS + LEISURE_SECONDS_PER_JOB * busy, MAX_LEISURE_SECONDS))

    def _wake_for_news(self, key: ObjectKey, *, or_routine: bool = False) -> None:
        if self._has_news(key, or_routine=or_routine):
            self.wake(key)

    def _cancel_timers(self, key: ObjectKey, entry: _Entry) -> None:
        self._soon.cancel(key)
        self._at_leisure.cancel(key)
        if entry.timer is not None:
            entry.timer.cancel()

    def wake_all(self) -> None:
        """Something that any job may depend on has changed."""
        for key in list(self._entries):
            self.wake(key)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone; a pass that runs is left to finish."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._cancel_timers(key, entry)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._entries)

    def is_stuck(self, limit_seconds: float) -> bool:
        """Whether keys wait although no worker has moved for a while."""
        return not self._queue.empty() and time.monotonic() - self.last_progress > limit_seconds

    async def _work(self) -> None:
        while True:
            _, _, key = await self._queue.get()
            self.last_progress = time.monotonic()
            entry = self._entries.get(key)
            if entry is None or not entry.is_queued:
                continue
            entry.is_queued, entry.is_running, entry.is_dirty, entry.is_urgent = False, True, False, False
            self._cancel_timers(key, entry)  # this pass reads what they would have woken it for
            with about_job(key):
                delay = await self._attempt(key, entry)
            entry.is_running = False
            self.last_progress = time.monotonic()
            # Also when the job was forgotten meanwhile: a namesake may have been created while the pass found nothing.
            if entry.is_dirty:
                (self.wake_first if entry.is_urgent else self.wake)(key)
            if self._entries.get(key) is entry:
                self._wake_later(key, entry, delay)

    async def _attempt(self, key: ObjectKey, entry: _Entry) -> float:
        begun, failure = time.monotonic(), ""
        try:
            requeue_after = await self._run_pass(key)
        except Conflict as conflict:
            failure = type(conflict).__name__
            logger.info("pass dropped: %s", conflict)
            entry.conflicts += 1
            return 0.05 * min(entry.conflicts, 20)
        except Exception as error:
            failure = type(error).__name__ if isinstance(error, KubernetesError) else "Bug"
            entry.failures += 1
            delay: float = self._backoff(entry.failures)
            if isinstance(error, Unavailable):
                delay = max(delay, error.retry_after or 0.0)
            if isinstance(error, KubernetesError):
                logger.warning("%s; next try in %.1f s", error, delay)
            else:
                logger.exception("the pass failed; next try in %.1f s", delay)
            return delay
        finally:
            self._metrics.pass_ended(time.monotonic() - begun, failure)
        entry.failures = entry.conflicts = 0
        resync = self._resync * random.uniform(1.0, 1.2)
        return resync if requeue_after is None else min(requeue_after, resync)

    def _backoff(self, failures: int) -> float:
        ceiling: float = doubled(FIRST_BACKOFF_SECONDS, failures, MAX_BACKOFF_SECONDS)
        return ceiling * random.uniform(0.5, 1.0)

    def _wake_later(self, key: ObjectKey, entry: _Entry, delay: float) -> None:
        """The newest pass knows best when to look again."""
        entry.timer = asyncio.get_running_loop().call_later(delay, self.wake, key)
