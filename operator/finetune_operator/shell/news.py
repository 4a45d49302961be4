"""Which events of Jobs and pods show something that a decision can see.

Kubernetes changes a pod about ten times and a Job six times in an attempt that goes well: finalizers, addresses, counts
of what is ready. Passes see the few facts of ``core/observed.py``; an event that leaves them as they were wakes nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.core.observed import seen_of_child
from finetune_operator.shell.object_key import ObjectKey

Raw = Mapping[str, Any]


class News:
    """How each child was shown last, or written, by job and uid: as decisions see it."""

    def __init__(self) -> None:
        self._children: dict[ObjectKey, dict[str, object]] = {}

    def shows(self, key: ObjectKey, raw: Raw, *, is_gone: bool = False) -> bool:
        """An event of a child of the job; whether a decision can tell it from what was shown before."""
        children, uid = self._children.setdefault(key, {}), raw["metadata"]["uid"]
        if is_gone:
            children.pop(uid, None)
            return True
        before, children[uid] = children.get(uid), seen_of_child(raw)
        return before != children[uid]

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self._children.pop(key, None)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._children)
