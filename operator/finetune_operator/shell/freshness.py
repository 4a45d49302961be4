"""A read that is older than what was seen before is not decided on.

An API server that lags behind its etcd, or a cache in between, can answer with the past: pods that are gone again, an
attempt that is not there yet. What the operator wrote and what its watches showed carries a resource version, and
versions of one kind grow. A read that is behind is repeated. Should the past last (etcd was restored from a backup, and
counts from there again), it becomes the present after ``PATIENCE_SECONDS``.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.errors import Conflict
from finetune_operator.shell.object_key import ObjectKey

PATIENCE_SECONDS = 60.0


@dataclass
class _Newest:
    version: int
    behind_since: float | None = None


class Freshness:
    """The newest version by job and kind of object; the clock is an argument."""

    def __init__(self) -> None:
        self._newest: dict[tuple[ObjectKey, str], _Newest] = {}

    def note(self, key: ObjectKey, kind: str, version: str) -> None:
        """An object of the job was seen or written, with this resource version."""
        if version.isdecimal():
            known = self._newest.setdefault((key, kind), _Newest(int(version)))
            known.version = max(known.version, int(version))

    def check(self, key: ObjectKey, kind: str, version: str, now: float) -> None:
        """A read of an object, or of a list, was answered with this version.

        Raises:
            Conflict: it shows the past; the pass is dropped and follows again.
        """
        known = self._newest.get((key, kind))
        if known is None or not version.isdecimal() or int(version) >= known.version:
            self.note(key, kind, version)
            if known is not None:
                known.behind_since = None
            return
        known.behind_since = known.behind_since if known.behind_since is not None else now
        if now - known.behind_since < PATIENCE_SECONDS:
            raise Conflict(f"{kind}: read version {version} after {known.version} had been seen")
        self._newest[key, kind] = _Newest(int(version))

    def newest(self, key: ObjectKey, kind: str) -> str:
        """The newest version that was seen; empty: none was."""
        known = self._newest.get((key, kind))
        return str(known.version) if known is not None else ""

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        for each in [each for each in self._newest if each[0] == key]:
            del self._newest[each]
