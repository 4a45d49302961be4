"""SIGTERM becomes a flag that the recipe polls; the handler only says so.

A handler cannot save: it may interrupt the main thread anywhere, and the other ranks do not know yet. So it
sets the flag, and the recipe asks at every micro-step, evaluation batch and generated token.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from finetune_trainer.errors import PreemptedError


class StopRequest:
    """Whether this process was told to stop."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Install the handler; call it in the main thread, before the slow imports."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see __main__

    def check(self) -> None:
        """For places without peers (loading).

        Raises:
            PreemptedError: SIGTERM has arrived.
        """
        if self.requested:
            raise PreemptedError("stopped by SIGTERM before training began")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        # Not print: the signal may interrupt a write to stderr, and buffered files refuse to be entered twice.
        os.write(2, b"SIGTERM received: stopping after this micro-step\n")
