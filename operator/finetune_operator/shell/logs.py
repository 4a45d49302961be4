"""Reads the log of each running attempt's rank 0, outside the reconcile passes.

A log that does not come (a slow kubelet, a broken route) is no information and never a reason to act. The newest report
per job lives in memory only: after a restart it is read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.core.actions import LogSource
from finetune_operator.core.observed import LogReport
from finetune_operator.errors import KubernetesError
from finetune_operator.shell.kube import Kube, cancel_and_wait, item
from finetune_operator.shell.object_key import ObjectKey
from finetune_trainer.messages import PhaseLine, Progress, parse_line

logger = logging.getLogger(__name__)

_READ_SECONDS = 3.0
_FIRST_READ_SECONDS, _FIRST_READ_SECONDS_PER_LOG = 2.0, 0.04
# The kubelet cuts at limitBytes from the *first* of these lines on: with more lines than fit, the newest would be lost.
# A progress line has at most about 600 bytes.
_QUERY = {"tailLines": "80", "limitBytes": "65536", "container": "trainer"}


@dataclass
class _Follower:
    source: LogSource
    task: asyncio.Task[None]


class LogReader:
    """One small task per running attempt."""

    def __init__(self, kube: Kube, interval_seconds: float, wake: Callable[[ObjectKey], None]) -> None:
        self._kube = kube
        self._interval = interval_seconds
        self._wake = wake
        self._followers: dict[ObjectKey, _Follower] = {}
        self._reports: dict[ObjectKey, LogReport] = {}

    def report(self, key: ObjectKey) -> LogReport | None:
        """What the log said last."""
        return self._reports.get(key)

    def follow(self, key: ObjectKey, source: LogSource | None) -> None:
        """Follow this pod from now on, or none."""
        current = self._followers.get(key)
        if current is not None and current.source == source:
            return
        if current is not None:
            current.task.cancel()
            del self._followers[key]
        if source is not None:
            # Its log lines speak of the job and attempt of the pass that starts it: a task inherits the context.
            task = asyncio.get_running_loop().create_task(self._run(key, source), name=f"log {key.name}")
            self._followers[key] = _Follower(source, task)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self.follow(key, None)
        self._reports.pop(key, None)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._followers.keys() | self._reports.keys())

    async def close(self) -> None:
        """Stop all."""
        for follower in self._followers.values():
            await cancel_and_wait(follower.task)
        self._followers.clear()

    async def _run(self, key: ObjectKey, source: LogSource) -> None:
        # Where many are followed, as after a start, they are not all read at once.
        wait = min(_FIRST_READ_SECONDS + _FIRST_READ_SECONDS_PER_LOG * len(self._followers), self._interval)
        while True:
            await asyncio.sleep(wait)
            report = await self._read(key, source)
            if report is not None and report != self._reports.get(key):
                self._reports[key] = report
                self._wake(key)
            # A quick first look for the phase, then the calm rhythm.
            wait = self._interval if report is not None else min(wait * 2, self._interval)

    async def _read(self, key: ObjectKey, source: LogSource) -> LogReport | None:
        try:
            path = item("Pod", key.namespace, source.pod_name) + "/log"
            return parse_log(await self._kube.get_text(path, _QUERY, seconds=_READ_SECONDS), source.pod_uid)
        except KubernetesError as error:
            logger.debug("no log of %s: %s", source.pod_name, error)
        except Exception:
            # Nobody awaits this task: an error that ended it would be seen by nobody.
            logger.exception("the log of %s cannot be read; it is tried again", source.pod_name)
        return None


def parse_log(text: str, pod_uid: str) -> LogReport | None:
    """The last valid lines of each kind; None when there is none of ours."""
    progress: Progress | None = None
    phase = ""
    for line in text.splitlines():
        parsed = parse_line(line)
        if isinstance(parsed, Progress):
            progress = parsed
        elif isinstance(parsed, PhaseLine):
            phase = parsed.phase
    if progress is None and not phase:
        return None
    return LogReport(pod_uid=pod_uid, progress=progress, phase=phase)
