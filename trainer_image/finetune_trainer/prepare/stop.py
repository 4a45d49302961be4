"""SIGTERM during prepare: stop at the next safe point.

Loops call :meth:`Stop.check`. A download sits in the client's code for minutes, so inside
:meth:`Stop.interrupting` the signal raises at once; what it may interrupt there are files below a folder
of this job that the next pod goes on with.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune_trainer.errors import PreemptedError


class Stop:
    """Whether the pod was told to stop."""

    def __init__(self) -> None:
        self._requested = False
        self._interrupting = False

    def check(self) -> None:
        """Return unless the pod was told to stop.

        Raises:
            PreemptedError: it was.
        """
        if self._requested:
            raise PreemptedError("told to stop by SIGTERM")

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within the block a signal raises from wherever the main thread is."""
        self.check()
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    @contextmanager
    def handling_sigterm(self) -> Iterator[None]:
        """Listen for SIGTERM; only possible in the main thread."""
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._interrupting:
            self.check()
