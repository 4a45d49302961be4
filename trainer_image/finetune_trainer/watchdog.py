"""Ends a process that makes no progress, so that a hang never holds GPUs for hours.

A thread compares the clock with the limits of the phases that are open; the main thread may sit in a
collective that never returns, where no signal handler of Python would run. On expiry it prints the stacks of
all threads to stderr and ends the process at once with exit code 78: a hung CUDA context cannot be torn down
in order.

The thread needs the interpreter. Where a library blocks that, or the process is stopped, the launcher ends the
worker by the same deadlines, of which ``on_change`` tells it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune_trainer.exit_codes import ExitCode

OnChange = Callable[[str, float | None, str], None]
_POLL_SECONDS = 0.5


class Watchdog:
    """Deadlines by activity: ``main`` moves from phase to phase, a background writer may hold its own."""

    def __init__(self, on_expiry: Callable[[str], None], on_change: OnChange = lambda *_: None) -> None:
        """``on_expiry`` is told what hung, before the process ends; it must be quick and must not block.

        ``on_change`` is told of every change: the main phase, the next deadline, and what to say when it passes.
        """
        self.phase = ""
        """What the main activity is doing."""
        self._on_expiry = on_expiry
        self._on_change = on_change
        self._deadlines: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def enter(self, phase: str, limit_seconds: float) -> None:
        """The main activity enters a phase, or passes a milestone within it: the clock starts anew."""
        self.phase = phase
        self._set("main", phase, limit_seconds)

    @contextmanager
    def limit(self, activity: str, limit_seconds: float) -> Iterator[None]:
        """A second activity that must end in time, beside the main one."""
        self._set(activity, activity, limit_seconds)
        try:
            yield
        finally:
            self._clear(activity)

    def rest(self) -> None:
        """Nothing is expected of the main activity any more."""
        self._clear("main")

    def _set(self, activity: str, phase: str, limit_seconds: float) -> None:
        with self._lock:
            text = f"{phase} took longer than {limit_seconds:g} s"
            self._deadlines[activity] = (time.monotonic() + limit_seconds, text)
            self._tell()

    def _clear(self, activity: str) -> None:
        with self._lock:
            self._deadlines.pop(activity, None)
            self._tell()

    def _tell(self) -> None:
        deadline, text = min(self._deadlines.values(), default=(None, ""))
        self._on_change(self.phase, deadline, text)

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            with self._lock:
                expired = [text for deadline, text in self._deadlines.values() if deadline < now]
            if expired:
                self._end(expired[0])

    def _end(self, text: str) -> None:
        try:
            print(f"watchdog: {text}; stacks of all threads follow", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr)
            self._on_expiry(text)
        finally:
            os._exit(ExitCode.HANG)
