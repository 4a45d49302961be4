"""Whether kopf's watches run. One that fails is logged and never begun again, and everything else goes on."""

from __future__ import annotations

import asyncio

_PREFIX = "watcher for "
"""kopf's names of the tasks."""


class Watchers:
    """The tasks that watch, by their names; looked at again and again."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[object]] = {}

    def complaint(self) -> str:
        """Which of them has ended by itself, in a sentence; empty: none. That of a CRD that is gone was cancelled."""
        self._tasks |= {name: task for task in asyncio.all_tasks() if (name := task.get_name()).startswith(_PREFIX)}
        dead = sorted(name for name, task in self._tasks.items() if task.done() and not task.cancelled())
        return f"the {', the '.join(dead)} has ended" if dead else ""
