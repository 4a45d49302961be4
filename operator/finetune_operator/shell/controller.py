"""Ties the parts together: one pass is gather, decide, execute."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.config import OperatorConfig
from finetune_operator.constants import JOB_KIND, STAGE_LABEL, STAGE_TRAIN
from finetune_operator.core.actions import Actions
from finetune_operator.core.observed import Observed
from finetune_operator.core.reconcile import reconcile
from finetune_operator.errors import Conflict, KubernetesError
from finetune_operator.shell.dispatcher import Dispatcher
from finetune_operator.shell.execute import execute
from finetune_operator.shell.gather import Gatherer, Memory
from finetune_operator.shell.inventory import Inventory
from finetune_operator.shell.kube import Json, Kube, cancel_and_wait, listing
from finetune_operator.shell.last_seen import LastSeen
from finetune_operator.shell.log_lines import about_attempt, about_job
from finetune_operator.shell.logs import LogReader
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.news import Interest, News
from finetune_operator.shell.object_key import ObjectKey
from finetune_operator.shell.pool_line import PoolLine
from finetune_operator.shell.watch_health import WatchHealth

logger = logging.getLogger(__name__)

STUCK_SECONDS = 120.0
FIRST_LOOK_SECONDS = 10.0
"""For so long the watches wait for the first passes."""
SECOND_LOOK_AFTER_SECONDS, SECOND_LOOK_EVERY_SECONDS = 30.0, 0.1
INVENTORY_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the tries to take the inventory: without it new gangs may get in between those that wait."""
PATIENCE_SECONDS = 60.0
"""For so long no pass of a job may come to its end before its gang no longer holds up others."""

_WRITTEN = (JOB_KIND, "Job")
"""Kinds that the operator both writes and watches."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """The running operator: created at start-up, closed at the end, carried in kopf's memo."""

    def __init__(
        self, kube: Kube, config: OperatorConfig, metrics: Metrics, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        self._kube = kube
        self._metrics = metrics
        self._namespaces = config.namespaces
        self._clock = clock
        self._inventory = Inventory()
        self._gatherer = Gatherer(kube, self._inventory, self._expect_event)
        self._last_seen = LastSeen()
        self._news = News()
        self._watches = WatchHealth(config.watch_seconds)
        self.dispatcher = Dispatcher(
            self.run_pass,
            metrics,
            has_news=self._gatherer.freshness.has_news,
            workers=config.workers,
            resync_seconds=config.resync_seconds,
        )
        self._line = PoolLine(self.dispatcher.wake_first, most_standing_by=config.workers // 2)
        self._uids: dict[ObjectKey, str] = {}
        """Of each job as a watch has shown it last."""
        self._unfinished_since: dict[ObjectKey, float] = {}
        """When the first pass began of those in a row that failed or met a conflict, by job; monotonic."""
        self._looks: list[asyncio.Task[None]] = []
        self._resync = config.resync_seconds
        self._logs = LogReader(kube, config.progress_seconds, self.dispatcher.wake)
        metrics.watch_tables(
            {
                "queue": self.dispatcher.jobs,
                "versions": self._gatherer.freshness.jobs,
                "news": self._news.jobs,
                "pods": self._last_seen.jobs,
                "reads": self._gatherer.jobs,
                "line": self._line.jobs,
                "watches": self._watches.jobs,
                "logs": self._logs.jobs,
                "uids": lambda: len(self._uids),
                "failures": lambda: len(self._unfinished_since),
            }
        )

    async def start(self) -> None:
        """Find out what there is, also in order that no new gang gets in between those that wait, and start working."""
        await self._take_inventory()
        self._line.expect(self._inventory.gangs)
        keys = {*self._inventory.gangs, *self._inventory.keys()}
        for key in keys:
            self.dispatcher.wake(key)
        self.dispatcher.start()
        self._looks = [
            asyncio.create_task(self._look_again(keys), name="second look"),
            asyncio.create_task(self._look_for_others(), name="look for others"),
        ]
        # The listings of the watches, which come next, would keep the passes from their work, and have little to tell.
        await self._inventory.used_up(seconds=FIRST_LOOK_SECONDS)

    async def _take_inventory(self) -> None:
        for pause in (*INVENTORY_PAUSES, None):
            try:
                await self._inventory.take(self._kube, self._namespaces)
            except KubernetesError as error:
                logger.warning("jobs and gangs that wait for nodes are not known yet: %s", error)
                if pause is not None:
                    await asyncio.sleep(pause)
            else:
                return

    async def close(self) -> None:
        """Stop working and disconnect."""
        for look in self._looks:
            await cancel_and_wait(look)
        await self.dispatcher.stop()
        await self._logs.close()
        await self._kube.close()

    async def _look_again(self, keys: Collection[ObjectKey]) -> None:
        """One after the other: what went between the inventory and the listings of the watches nobody has shown."""
        await asyncio.sleep(SECOND_LOOK_AFTER_SECONDS)
        for key in keys:
            self.dispatcher.wake(key)
            await asyncio.sleep(SECOND_LOOK_EVERY_SECONDS)
        self._inventory.clear()

    async def _look_for_others(self) -> None:
        """As often as every job is looked at: those whose first event was lost, of which nobody knows.

        kopf lists once, and goes on from the last version after that, as long as the API server has it.
        """
        while True:
            await asyncio.sleep(self._resync)
            try:
                await self.wake_unknown()
            except KubernetesError as error:
                logger.warning("jobs that no event has told of are not known: %s", error)

    async def wake_unknown(self) -> None:
        """Look at each job that is there and that nobody has heard of."""
        for namespace in self._namespaces or ("",):
            found = await self._kube.get_metadata(listing(JOB_KIND, namespace), {"resourceVersion": "0"})
            for meta in (raw["metadata"] for raw in found["items"]):
                key = ObjectKey(meta["namespace"], meta["name"])
                if not self.dispatcher.knows(key):
                    with about_job(key):
                        logger.info("no event has told of it yet")
                    self.dispatcher.wake(key)

    def deleted(self, key: ObjectKey, uid: str) -> None:
        """A watch showed that the job is gone.

        kopf keeps the order of events of one object only: a namesake may have been shown before. And a pass that runs
        may remember the job once more; another one follows, which finds nothing and forgets that.
        """
        self.dispatcher.wake(key)
        if self._uids.get(key, uid) == uid:
            self.forget(key)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone; its children follow by their owner references."""
        self.dispatcher.forget(key)
        self._uids.pop(key, None)
        self._forget_what_was_seen(key)

    def _forget_what_was_seen(self, key: ObjectKey) -> None:
        self._gatherer.forget(key)
        self._logs.forget(key)
        self._last_seen.forget(key)
        self._news.forget(key)
        self._line.forget(key)
        self._metrics.forget(key)
        self._inventory.forget(key)
        self._unfinished_since.pop(key, None)
        self._watches.forget(key)

    def saw(self, key: ObjectKey, kind: str, raw: Mapping[str, Any], event: str | None) -> None:
        """A watch showed a FineTuneJob, or a Job or pod of one; the next pass may not read anything older.

        ``event`` is the type of the watch's event; None: the object is one of the listing that a watch begins with.
        """
        uid, version = raw["metadata"]["uid"], raw["metadata"]["resourceVersion"]
        if kind == JOB_KIND and self._uids.setdefault(key, uid) != uid:
            self._forget_what_was_seen(key)  # of a namesake, whose deletion was not shown, or will be
            self._uids[key] = uid
        interest = Interest.NEWS if kind == JOB_KIND else self._news.shows(key, raw, is_gone=event == "DELETED")
        is_known = event is None and self._inventory.has(uid, version)
        is_listing = event is None and not is_known
        if is_known:
            interest = Interest.NONE
        elif is_listing:
            interest = Interest.NEWS
        self._gatherer.freshness.shown(key, kind, version, interest, is_evidence=kind == "Pod", is_listing=is_listing)
        self._watches.saw(key, kind, uid, version)
        if kind == "Pod":
            self._last_seen.note(key, raw)
            self._line.saw_pod(key, raw)
        if interest is Interest.ROUTINE:
            self.dispatcher.wake_at_leisure(key)
        elif interest is Interest.NEWS and kind == JOB_KIND and not _is_up_to_date(raw):
            self.dispatcher.wake(key)
        elif interest is Interest.NEWS:
            self.dispatcher.wake_soon(key)

    def saw_runtime(self, raw: Mapping[str, Any], event: str | None) -> None:
        """A watch showed a FineTuneRuntime: jobs may wait for it."""
        if event is not None or not self._inventory.has(raw["metadata"]["uid"], raw["metadata"]["resourceVersion"]):
            self.dispatcher.wake_all()

    def silent_watch(self) -> str:
        """Which watch shows nothing any more, in a sentence; empty: none that we know of."""
        return self._watches.complaint(time.monotonic())

    async def run_pass(self, key: ObjectKey) -> float | None:
        """Gather, decide, execute; returns when to look again."""
        begun = time.monotonic()
        try:
            requeue_after = await self._run_pass(key)
        except Exception:
            if time.monotonic() - self._unfinished_since.setdefault(key, begun) >= PATIENCE_SECONDS:
                # Others wait for the nodes that this job's gang may hold in vain.
                self._line.update(key, waits_for_nodes=None, stands_in_line=None)
            raise
        finally:
            self._line.see(key)
        self._unfinished_since.pop(key, None)
        return requeue_after

    async def _run_pass(self, key: ObjectKey) -> float | None:
        memory = Memory(self._logs.report(key), self._last_seen.known(key), self._line.busy_for(key))
        observed = await self._gatherer.gather(key, memory)
        if observed is None:
            logger.info("gone, and forgotten")
            self.forget(key)
            return None
        pods = (*observed.pods, *observed.loose_pods)
        uids = {observed.job.uid, *(job.uid for job in observed.jobs), *(pod.uid for pod in pods)}
        self._watches.keep_only(key, uids)
        actions = reconcile(observed, self._clock())
        status = observed.job.status
        if actions.status is not None:
            status = FineTuneJobStatus.model_validate(actions.status)
        about_attempt(status.totals.attempts)
        await self._execute(key, observed, actions)
        self._metrics.job_looked_at(key, status)
        self._logs.follow(key, actions.follow_log)
        self._line.update(key, waits_for_nodes=actions.waits_for_nodes, stands_in_line=actions.stands_in_line)
        self._last_seen.forget_before(key, observed.job.status.totals.attempts)
        return actions.requeue_after

    async def _execute(self, key: ObjectKey, observed: Observed, actions: Actions) -> None:
        pool = actions.waits_for_nodes if actions.creates_pods else None
        if pool is not None and not self._line.is_next(key, pool) and not self._line.take(key, pool):
            raise _pool_is_taken()

        async def wait_for_turn() -> None:
            if pool is not None and not await self._line.turn(key, pool):
                raise _pool_is_taken()

        try:
            await execute(
                self._kube, observed.job, actions, lambda answer: self._note(key, observed, answer), wait_for_turn
            )
        except Conflict:
            raise  # what was created may wait for nodes; the next pass follows at once and knows
        except Exception:
            # A gang that could not be created must not hold up the others.
            self._line.update(key, waits_for_nodes=None, stands_in_line=None)
            raise

    def _expect_event(self, key: ObjectKey, kind: str, uid: str, version: str) -> None:
        self._watches.expect(key, kind, uid, version, time.monotonic())

    def _note(self, key: ObjectKey, observed: Observed, answer: Json) -> None:
        """What was written must be shown by a watch, and what it says is new is counted."""
        kind, meta = answer["kind"], answer["metadata"]
        if kind in _WRITTEN:
            self._expect_event(key, kind, meta["uid"], meta["resourceVersion"])
        if kind == "Job":
            self._gatherer.freshness.created(key, kind, meta["resourceVersion"])
            if meta["labels"].get(STAGE_LABEL) == STAGE_TRAIN:
                self._line.created(key, meta["uid"], answer["spec"]["completions"])
        if kind == JOB_KIND:
            self._gatherer.wrote(key, answer)
            after = FineTuneJobStatus.model_validate(answer["status"])
            self._metrics.status_written(key.namespace, observed.job.status, after)


def _pool_is_taken() -> Conflict:
    return Conflict("another gang came first to the pool")  # the next pass stands in line


def _is_up_to_date(job: Mapping[str, Any]) -> bool:
    """Whether the status has seen what the user asked for; the event is then likely to show our own write."""
    meta = job["metadata"]
    seen = job.get("status", {}).get("observedGeneration")
    return seen == meta.get("generation") and "deletionTimestamp" not in meta
