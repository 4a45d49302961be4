"""Ties the parts together: one pass is gather, decide, execute."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_operator.config import OperatorConfig
from finetune_operator.core.actions import Actions
from finetune_operator.core.observed import Observed
from finetune_operator.core.reconcile import reconcile
from finetune_operator.errors import Conflict, KubernetesError
from finetune_operator.shell.dispatcher import Dispatcher
from finetune_operator.shell.execute import execute
from finetune_operator.shell.gather import Gatherer, Memory, ObjectKey
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.last_seen import LastSeen
from finetune_operator.shell.logs import LogReader
from finetune_operator.shell.pool_line import PoolLine

logger = logging.getLogger(__name__)

STUCK_SECONDS = 120.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """The running operator: created at start-up, closed at the end, carried in kopf's memo."""

    def __init__(self, kube: Kube, config: OperatorConfig, clock: Callable[[], datetime] = _utc_now) -> None:
        self._kube = kube
        self._namespaces = config.namespaces
        self._clock = clock
        self._gatherer = Gatherer(kube)
        self.last_seen = LastSeen()
        self.dispatcher = Dispatcher(self.run_pass, workers=config.workers, resync_seconds=config.resync_seconds)
        self._line = PoolLine(self.dispatcher.wake)
        self._logs = LogReader(kube, config.progress_seconds, self.dispatcher.wake)

    async def start(self) -> None:
        """Find out which gangs there are, so that no new one gets in between, and start working."""
        try:
            found = await self._gatherer.find_gangs(self._namespaces)
        except KubernetesError as error:
            logger.warning("gangs that wait for nodes are not known yet: %s", error)
            found = frozenset()
        self._line.expect(found)
        for key in found:
            self.dispatcher.wake(key)
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
        self.last_seen.forget(key)
        self._line.forget(key)

    async def run_pass(self, key: ObjectKey) -> float | None:
        """Gather, decide, execute; returns when to look again."""
        try:
            return await self._run_pass(key)
        finally:
            self._line.see(key)

    async def _run_pass(self, key: ObjectKey) -> float | None:
        memory = Memory(self._logs.report(key), self.last_seen.known(key), self._line.busy_for(key))
        observed = await self._gatherer.gather(key, memory)
        if observed is None:
            self.forget(key)
            return None
        actions = reconcile(observed, self._clock())
        await self._execute(key, observed, actions)
        self._logs.follow(key, actions.follow_log)
        self._line.update(key, waits_for_nodes=actions.waits_for_nodes, stands_in_line=actions.stands_in_line)
        self.last_seen.forget_before(key, observed.job.status.totals.attempts)
        return actions.requeue_after

    async def _execute(self, key: ObjectKey, observed: Observed, actions: Actions) -> None:
        pool = actions.waits_for_nodes
        if actions.create and pool is not None and not self._line.take(key, pool):
            raise Conflict("another gang came first to the pool")  # the next pass stands in line
        try:
            await execute(self._kube, observed.job, actions)
        except Conflict:
            raise  # what was created may wait for nodes; the next pass follows at once and knows
        except Exception:
            # A gang that could not be created must not hold up the others.
            self._line.update(key, waits_for_nodes=None, stands_in_line=None)
            raise
