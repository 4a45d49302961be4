"""kopf keeps nothing about objects: handlers only wake keys, so there is no progress and no difference to compute.

Its own storages copy every object of every event several times to find out what changed since it was handled last.
"""

from __future__ import annotations

from typing import Any

import kopf


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
