"""What each job's passes have read, and what watches and writes have shown, as resource versions, which grow.

A read that is older than what was known when it was asked for is not decided on. An API server that lags behind its
etcd, or a cache in between, can answer with the past: pods that are gone again, an attempt that is not there yet. Such
a read is repeated. Should the past last (etcd was restored from a backup, and counts from there again), it becomes the
present after ``PATIENCE_SECONDS``.

The other way round, an event that shows no more than what a pass has read since is no news.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.errors import Conflict
from finetune_operator.shell.news import Interest
from finetune_operator.shell.object_key import ObjectKey

PATIENCE_SECONDS = 60.0


@dataclass
class _Versions:
    newest: int = 0
    """Of anything that was read, written, or shown by a watch."""
    news: int = 0
    """Of what a watch has shown that a decision may depend on …"""
    routine: int = 0
    """… and of what decisions wait for and have nothing to say about."""
    read: int = 0
    """Everything up to here is known to passes."""
    behind_since: float | None = None


class Freshness:
    """Versions by job and kind of object; the clock is an argument."""

    def __init__(self) -> None:
        self._jobs: dict[ObjectKey, dict[str, _Versions]] = {}

    def shown(
        self,
        key: ObjectKey,
        kind: str,
        version: str,
        interest: Interest,
        *,
        is_evidence: bool = False,
        is_listing: bool = False,
    ) -> None:
        """A watch showed an object of the job.

        Evidence is news also after a read of that version: the read may have found that the object is gone, and not how
        it ended. In a listing, with which a watch begins anew, everything is news.
        """
        if not version.isdecimal():
            return
        known = self._of(key, kind)
        known.newest = max(known.newest, int(version))
        if is_listing or (is_evidence and interest is Interest.NEWS):
            known.read = min(known.read, int(version) - 1)
        if interest is Interest.ROUTINE:
            known.routine = max(known.routine, int(version))
        elif interest is Interest.NEWS:
            known.news = max(known.news, int(version))

    def created(self, key: ObjectKey, kind: str, version: str) -> None:
        """A pass made one of several objects of the kind; it has not read how the others are."""
        if version.isdecimal():
            known = self._of(key, kind)
            known.newest = max(known.newest, int(version))

    def knows(self, key: ObjectKey, kind: str, version: str) -> None:
        """A pass has read everything of the kind up to this version, or has written the only object there is."""
        if version.isdecimal():
            known = self._of(key, kind)
            known.newest, known.read = max(known.newest, int(version)), max(known.read, int(version))

    def check(self, key: ObjectKey, kind: str, version: str, at_least: str, now: float) -> None:
        """A read of an object, or of a list, was answered with this version.

        ``at_least`` is what ``newest`` said when it was asked for; what a watch has shown since may be missing.

        Raises:
            Conflict: it shows the past; the pass is dropped and follows again.
        """
        known = self._of(key, kind)
        if not (version.isdecimal() and at_least.isdecimal()) or int(version) >= int(at_least):
            known.behind_since = None
            self.knows(key, kind, version)
            return
        known.behind_since = known.behind_since if known.behind_since is not None else now
        if now - known.behind_since < PATIENCE_SECONDS:
            raise Conflict(f"{kind}: read version {version} after {at_least} had been seen")
        self._jobs[key][kind] = _Versions(newest=int(version), read=int(version))

    def newest(self, key: ObjectKey, kind: str) -> str:
        """The newest version that was seen; empty: none was."""
        known = self._jobs.get(key, {}).get(kind)
        return str(known.newest) if known is not None and known.newest else ""

    def has_news(self, key: ObjectKey, *, or_routine: bool = False) -> bool:
        """Whether a watch has shown what no pass has read."""
        versions = self._jobs.get(key, {}).values()
        return any(max(known.news, known.routine if or_routine else 0) > known.read for known in versions)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self._jobs.pop(key, None)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._jobs)

    def _of(self, key: ObjectKey, kind: str) -> _Versions:
        return self._jobs.setdefault(key, {}).setdefault(kind, _Versions())
