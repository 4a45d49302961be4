"""Whose gang may wait for the nodes of a pool: one job per pool at a time, the others in line.

It moves on as soon as a watch has shown that all pods of the gang have their nodes, without a pass in between. While
the pods of one gang find theirs, the next in line does everything up to creating its Job, and stands by.

It lives in memory: after a restart every gang that still waits for nodes takes its pool again at its first pass, and
until all gangs had theirs no new one is created. Should two gangs get past it, say with two operators,
``scheduleTimeoutSeconds`` parts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.shell.object_key import ObjectKey

STAND_BY_SECONDS = 1.0
"""As long as pods need where there is room. Where there is none, the next in line waits without a pass that waits."""


@dataclass
class _Gang:
    job_uid: str
    pods: int
    bound: set[str] = field(default_factory=set)
    """uids of the pods that have their nodes."""


class PoolLine:
    """Holders and lines by pool (``placement_policy.pool_key``)."""

    def __init__(self, wake: Callable[[ObjectKey], None], *, most_standing_by: int) -> None:
        """``most_standing_by``: passes that may wait for their turn at the same time; each keeps a worker busy."""
        self._wake = wake
        self._most_standing_by = most_standing_by
        self._holders: dict[str, ObjectKey] = {}
        self._lines: dict[str, dict[ObjectKey, None]] = {}
        self._unseen: set[ObjectKey] = set()
        self._gangs: dict[ObjectKey, _Gang] = {}
        self._next: dict[str, ObjectKey] = {}
        """By pool, who may get ready …"""
        self._getting_ready: set[ObjectKey] = set()
        """… and whose passes do: each will find out by itself that it is its turn."""
        self._standing_by: dict[ObjectKey, asyncio.Future[None]] = {}

    def expect(self, keys: Collection[ObjectKey]) -> None:
        """At start-up: each of these may wait for nodes, which only its first pass shows."""
        self._unseen.update(keys)

    def see(self, key: ObjectKey) -> None:
        """Its first pass is over. One that failed counts as well: it must not hold up the others."""
        self._unseen.discard(key)

    def busy_for(self, key: ObjectKey) -> frozenset[str]:
        """Pools that somebody else holds, but for those that this job may get ready for; asked when a pass begins."""
        if key in self._next.values():
            self._getting_ready.add(key)
        else:
            self._getting_ready.discard(key)
        return frozenset(
            pool for pool, holder in self._holders.items() if holder != key and not self.is_next(key, pool)
        )

    def is_next(self, key: ObjectKey, pool: str) -> bool:
        """Whether the job may prepare everything and then wait for its turn."""
        return self._next.get(pool) == key

    def take(self, key: ObjectKey, pool: str) -> bool:
        """Hold the pool in order to create a gang; False: somebody else holds it, or may turn out to."""
        return not self._unseen - {key} and self._hold(key, pool)

    async def turn(self, key: ObjectKey, pool: str) -> bool:
        """Hold the pool, at once or when it is handed over within a moment; False: as with ``take``."""
        if self.is_next(key, pool) and self._holders.get(pool) != key:
            if len(self._standing_by) < self._most_standing_by:
                await self._stand_by(key)
            if self.is_next(key, pool):
                del self._next[pool]
        return self.take(key, pool)

    async def _stand_by(self, key: ObjectKey) -> None:
        self._standing_by[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(STAND_BY_SECONDS):
                await self._standing_by[key]
        except TimeoutError:
            pass
        finally:
            del self._standing_by[key]

    def created(self, key: ObjectKey, job_uid: str, pods: int) -> None:
        """The gang that the pool is held for, as a Job of so many pods."""
        self._gangs[key] = _Gang(job_uid, pods)
        for pool in [pool for pool, holder in self._holders.items() if holder == key]:
            following = self._first(pool)
            if following is not None:
                self._next[pool] = following
                self._wake(following)

    def saw_pod(self, key: ObjectKey, pod: Mapping[str, Any]) -> None:
        """A watch showed a pod of the job: perhaps the last one of the gang that got its node."""
        gang = self._gangs.get(key)
        if gang is None or not pod["spec"].get("nodeName"):
            return
        if all(owner["uid"] != gang.job_uid for owner in pod["metadata"].get("ownerReferences", [])):
            return
        gang.bound.add(pod["metadata"]["uid"])
        if len(gang.bound) >= gang.pods:
            self.update(key, waits_for_nodes=None, stands_in_line=None)

    def update(self, key: ObjectKey, *, waits_for_nodes: str | None, stands_in_line: str | None) -> None:
        """After a pass: hold this pool and no other, and stand in this line and no other."""
        self._getting_ready.discard(key)
        for pool in [pool for pool, holder in self._holders.items() if holder == key and pool != waits_for_nodes]:
            self._hand_over(pool)
        if waits_for_nodes is not None:
            self._hold(key, waits_for_nodes)
        else:
            self._gangs.pop(key, None)
        for pool in [pool for pool, line in self._lines.items() if key in line and pool != stands_in_line]:
            self._leave(pool, key)
        if stands_in_line is not None:
            self._lines.setdefault(stands_in_line, {})[key] = None
            if stands_in_line not in self._holders:  # it became free while the pass ran
                self._hand_over(stands_in_line)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self.update(key, waits_for_nodes=None, stands_in_line=None)
        self._go_on(key)
        self._unseen.discard(key)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        in_line = {key for line in self._lines.values() for key in line}
        held = {*self._holders.values(), *self._next.values()}
        return len(held | in_line | self._gangs.keys() | self._unseen | self._standing_by.keys() | self._getting_ready)

    def _hold(self, key: ObjectKey, pool: str) -> bool:
        return self._holders.setdefault(pool, key) == key

    def _hand_over(self, pool: str) -> None:
        """The next in line holds the pool before it knows, so that nobody gets in between."""
        self._holders.pop(pool, None)
        self._next.pop(pool, None)
        following = self._first(pool)
        if following is not None:
            self._leave(pool, following)
            self._holders[pool] = following
            if not self._go_on(following) and following not in self._getting_ready:
                self._wake(following)

    def _go_on(self, key: ObjectKey) -> bool:
        """Wake the pass that stands by, if one does."""
        future = self._standing_by.get(key)
        if future is not None and not future.done():
            future.set_result(None)
        return future is not None

    def _first(self, pool: str) -> ObjectKey | None:
        return next(iter(self._lines.get(pool, {})), None)

    def _leave(self, pool: str, key: ObjectKey) -> None:
        if self._next.get(pool) == key:
            del self._next[pool]
        line = self._lines[pool]
        line.pop(key, None)
        if not line:
            del self._lines[pool]
