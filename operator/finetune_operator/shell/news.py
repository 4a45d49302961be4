"""Which events of Jobs and pods show something that a decision can see, and how soon it is wanted.

Kubernetes changes a pod about ten times and a Job six times in an attempt that goes well: finalizers, addresses, counts
of what is ready. Passes see the few facts of ``core/observed.py``; an event that leaves them as they were wakes nobody.
That a Job or a pod came into being, found its node and began is what everybody waits for and nobody has to act upon:
the pass that follows when something does happen sees that as well, so no pass is made for it alone before a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from finetune_operator.core.observed import SeenChild
from finetune_operator.shell.object_key import ObjectKey

Raw = Mapping[str, Any]


class Interest(Enum):
    """How much a decision may depend on an event."""

    NONE = "none"
    ROUTINE = "routine"
    NEWS = "news"


class News:
    """How each child was shown last, by job and uid: as decisions see it."""

    def __init__(self) -> None:
        self._children: dict[ObjectKey, dict[str, SeenChild]] = {}

    def shows(self, key: ObjectKey, raw: Raw, *, is_gone: bool = False) -> Interest:
        """An event of a child of the job; whether a decision can tell it from what was shown before."""
        children, uid = self._children.setdefault(key, {}), raw["metadata"]["uid"]
        if is_gone:
            children.pop(uid, None)
            return Interest.NEWS
        before, now = children.get(uid), SeenChild.from_api(raw)
        children[uid] = now
        if now == before:
            return Interest.NONE
        core = now.without_routine()
        is_routine = core.is_untouched if before is None else core == before.without_routine()
        return Interest.ROUTINE if is_routine else Interest.NEWS

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self._children.pop(key, None)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._children)
