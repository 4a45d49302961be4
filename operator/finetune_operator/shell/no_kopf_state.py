"""kopf keeps nothing about objects: handlers only wake keys, so there is no progress and no difference to compute.

Its own storages copy every object of every event several times to find out what changed since it was handled last. Its
memories of objects take some kilobytes each, and for ever where the event of a deletion was lost.
"""

from __future__ import annotations

from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory


class NoDifference(kopf.DiffBaseStorage):
    """Nothing was handled before, and nothing of an object is essential."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Nowhere."""


class NoProgress(kopf.ProgressStorage):
    """No handler is ever in progress."""

    def fetch(self, **_: Any) -> None:
        """Nothing."""

    def store(self, **_: Any) -> None:
        """Nowhere."""

    def purge(self, **_: Any) -> None:
        """Nothing."""

    def touch(self, **_: Any) -> None:
        """Nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """There is nothing of ours in it."""
        return essence


class NoMemories(ResourceMemories):
    """Each event is the first one of its object."""

    async def recall(self, raw_body: Any, **kwargs: Any) -> ResourceMemory:
        """A new one, which is not kept."""
        return await super().recall(raw_body, **{**kwargs, "ephemeral": True})
