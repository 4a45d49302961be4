"""Whose gang may wait for the nodes of a pool: one job per pool at a time, the others in line.

It lives in memory: after a restart every gang that still waits for nodes takes its pool again at its first pass, and
until all gangs had theirs no new one is created. Should two gangs get past it, say with two operators,
``scheduleTimeoutSeconds`` parts them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from finetune_operator.shell.object_key import ObjectKey


class PoolLine:
    """Holders and lines by pool (``placement_policy.pool_key``)."""

    def __init__(self, wake: Callable[[ObjectKey], None]) -> None:
        self._wake = wake
        self._holders: dict[str, ObjectKey] = {}
        self._lines: dict[str, dict[ObjectKey, None]] = {}
        self._unseen: set[ObjectKey] = set()

    def expect(self, keys: Collection[ObjectKey]) -> None:
        """At start-up: each of these may wait for nodes, which only its first pass shows."""
        self._unseen.update(keys)

    def see(self, key: ObjectKey) -> None:
        """Its first pass is over. One that failed counts as well: it must not hold up the others."""
        self._unseen.discard(key)

    def busy_for(self, key: ObjectKey) -> frozenset[str]:
        """Pools that somebody else holds."""
        return frozenset(pool for pool, holder in self._holders.items() if holder != key)

    def take(self, key: ObjectKey, pool: str) -> bool:
        """Hold the pool in order to create a gang; False: somebody else holds it, or may turn out to."""
        return not self._unseen - {key} and self._hold(key, pool)

    def update(self, key: ObjectKey, *, waits_for_nodes: str | None, stands_in_line: str | None) -> None:
        """After a pass: hold this pool and no other, and stand in this line and no other."""
        for pool in [pool for pool, holder in self._holders.items() if holder == key and pool != waits_for_nodes]:
            self._hand_over(pool)
        if waits_for_nodes is not None:
            self._hold(key, waits_for_nodes)
        for pool in [pool for pool, line in self._lines.items() if key in line and pool != stands_in_line]:
            self._leave(pool, key)
        if stands_in_line is not None:
            self._lines.setdefault(stands_in_line, {})[key] = None
            if stands_in_line not in self._holders:  # it became free while the pass ran
                self._hand_over(stands_in_line)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self.update(key, waits_for_nodes=None, stands_in_line=None)

    def _hold(self, key: ObjectKey, pool: str) -> bool:
        return self._holders.setdefault(pool, key) == key

    def _hand_over(self, pool: str) -> None:
        """The next in line holds the pool before it knows, so that nobody gets in between."""
        self._holders.pop(pool, None)
        following = next(iter(self._lines.get(pool, {})), None)
        if following is not None:
            self._leave(pool, following)
            self._holders[pool] = following
            self._wake(following)

    def _leave(self, pool: str, key: ObjectKey) -> None:
        line = self._lines[pool]
        line.pop(key, None)
        if not line:
            del self._lines[pool]
