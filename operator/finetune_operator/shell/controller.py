"""Ties the parts together: one pass is gather, decide, execute."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_operator.config import OperatorConfig
from finetune_operator.core.reconcile import reconcile
from finetune_operator.shell.dispatcher import Dispatcher
from finetune_operator.shell.execute import execute
from finetune_operator.shell.gather import Gatherer, ObjectKey
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.logs import LogReader

logger = logging.getLogger(__name__)

STUCK_SECONDS = 120.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """The running operator: created at start-up, closed at the end, carried in kopf's memo."""

    def __init__(self, kube: Kube, config: OperatorConfig, clock: Callable[[], datetime] = _utc_now) -> None:
        self._kube = kube
        self._clock = clock
        self._gatherer = Gatherer(kube)
        self.dispatcher = Dispatcher(self.run_pass, workers=config.workers, resync_seconds=config.resync_seconds)
        self._logs = LogReader(kube, config.progress_seconds, self.dispatcher.wake)

    def start(self) -> None:
        """Start working."""
        self.dispatcher.start()

    async def close(self) -> None:
        """Stop working and disconnect."""
        await self.dispatcher.stop()
        await self._logs.close()
        await self._kube.close()

    def forget(self, key: ObjectKey) -> None:
        """The job is gone; its children follow by their owner references."""
        self.dispatcher.forget(key)
        self._gatherer.forget(key)
        self._logs.forget(key)

    async def run_pass(self, key: ObjectKey) -> float | None:
        """Gather, decide, execute; returns when to look again."""
        observed = await self._gatherer.gather(key, self._logs.report(key))
        if observed is None:
            self.forget(key)
            return None
        actions = reconcile(observed, self._clock())
        await execute(self._kube, observed.job, actions)
        self._logs.follow(key, actions.follow_log)
        return actions.requeue_after
