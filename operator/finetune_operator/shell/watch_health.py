"""Whether the watches still say what happens.

A watch can go silent without breaking, and an operator that hears nothing looks like one that has nothing to do. What
the operator knows anyway is a test that costs no request: every status that it writes, every Job that it creates and
every pod that a pass has listed must be shown by the watch of its kind as well. One that stays out for too long means
that the watch is dead.

Versions are compared as numbers, which Kubernetes allows: an event may show a state later than the one that was
written or read, and it may come before the answer does. The clock is an argument: seconds that only go forward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from finetune_operator.constants import JOB_KIND
from finetune_operator.shell.object_key import ObjectKey


@dataclass
class _Watched:
    kind: str
    newest_seen: int = 0
    expected: dict[int, float] = field(default_factory=dict)
    """Version that was written or read -> when."""


class WatchHealth:
    """What was written or read and has not been shown, by FineTuneJob and uid."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._jobs: dict[ObjectKey, dict[str, _Watched]] = {}

    def expect(self, key: ObjectKey, kind: str, uid: str, resource_version: str, now: float) -> None:
        """The object was written or read, perhaps not for the first time.

        A job that the watch has never shown, or has shown as deleted, expects nothing.
        """
        objects = self._jobs.get(key)
        if objects is None:
            return
        version = _number(resource_version)
        watched = objects.setdefault(uid, _Watched(kind))
        if version > watched.newest_seen:
            watched.expected.setdefault(version, now)

    def saw(self, key: ObjectKey, kind: str, uid: str, resource_version: str) -> None:
        """An event showed the object."""
        if kind == JOB_KIND:
            self._jobs.setdefault(key, {})
        elif key not in self._jobs:
            return  # a child that is collected after its job
        watched = self._jobs[key].setdefault(uid, _Watched(kind))
        watched.newest_seen = max(watched.newest_seen, _number(resource_version))
        watched.expected = {
            version: when for version, when in watched.expected.items() if version > watched.newest_seen
        }

    def keep_only(self, key: ObjectKey, uids: Collection[str]) -> None:
        """A fresh read found these; whatever else there was is deleted and expects nothing."""
        objects = self._jobs.get(key, {})
        for uid in [uid for uid in objects if uid not in uids]:
            del objects[uid]

    def forget(self, key: ObjectKey) -> None:
        """The job is gone, and its children with it."""
        self._jobs.pop(key, None)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._jobs)

    def complaint(self, now: float) -> str:
        """Which watch is silent, in a sentence; empty: none."""
        waits = [
            (now - when, watched.kind, key)
            for key, objects in self._jobs.items()
            for watched in objects.values()
            for when in watched.expected.values()
        ]
        longest, kind, key = max(waits, default=(0.0, "", ObjectKey("", "")))
        if longest <= self._limit:
            return ""
        job = f"{key.namespace}/{key.name}"
        return f"the watch of {kind}s is silent: it has not shown what was written or read of {job} {longest:.0f} s ago"


def _number(resource_version: str) -> int:
    """0, which expects nothing, where a server's versions are no numbers."""
    return int(resource_version) if resource_version.isdecimal() else 0
