"""What rank 0 says on stdout: JSON lines, and nothing else ever.

Libraries print, warn and draw progress bars; one stray half-line would hide a progress line from the
operator. So a worker takes the real stdout for itself and points file descriptor 1 at stderr before it
imports anything heavy.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from finetune_trainer.clock import utc_now
from finetune_trainer.messages import (
    CheckpointRef,
    Line,
    Phase,
    PhaseLine,
    Progress,
    PublishedResult,
    WarningLine,
)
from finetune_trainer.outcome import printable

HEARTBEAT_SECONDS = 10.0
_MIN_SECONDS = 1.0
_RATE_WINDOW = 20


def take_stdout() -> TextIO:
    """The process's real stdout; from now on everything else that is printed goes to stderr."""
    real = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return real


def stamped(line: Line) -> str:
    """The line as it is written; one without a time gets that of being spoken, for it is a sign of life."""
    return line.model_copy(update={"time": line.time or utc_now()}).model_dump_json(by_alias=True, exclude_none=True)


class Reporter:
    """Progress lines: after a step, at most one per second, at least one per ten seconds; thread-safe."""

    def __init__(
        self,
        out: TextIO | None,
        total_steps: int,
        rows_per_epoch: int,
        rows_per_step: int,
        note: Callable[[str, str], None] | None = None,
    ) -> None:
        """Without ``out`` (every rank but 0) it says nothing. ``note`` is told a new strategy and warning as well."""
        self._out = out
        self._note = note
        self._epochs_per_step = rows_per_step / rows_per_epoch
        self._lock = threading.Lock()
        self._spoke_at = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self.progress = Progress(step=0, total_steps=total_steps, epoch=0.0)
        if out is not None:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def phase(self, phase: Phase) -> None:
        """Announce that a phase begins."""
        self._say(PhaseLine(phase=phase))

    def warn(self, message: str) -> None:
        """Tell the user something that does not stop the run; it may name a file whose name is no UTF-8."""
        message = printable(message)
        self._update(warning=message[:300])
        self._take_note()
        self._say(WarningLine(message=message[:1000]))

    def spread(self, strategy: str) -> None:
        """How the model is spread over the ranks; the next line shows it."""
        self._update(strategy=strategy)
        self._take_note()

    def result(self, result: PublishedResult) -> None:
        """Announce the published adapter."""
        self._say(result)

    def resumed(self, step: int, loss: float | None, checkpoint: CheckpointRef) -> None:
        """The attempt continues from this checkpoint."""
        self._update(
            step=step,
            epoch=step * self._epochs_per_step,
            loss=loss,
            resumed_from_step=step,
            checkpoint=checkpoint,
        )
        self._speak()

    def saved(self, checkpoint: CheckpointRef) -> None:
        """A checkpoint is complete; the next line shows it."""
        self._update(checkpoint=checkpoint)

    def evaluated(self, eval_loss: float | None) -> None:
        """The held-out loss was measured."""
        self._update(eval_loss=eval_loss)
        self._speak()

    def stepped(self, step: int, loss: float, learning_rate: float, tokens: int) -> None:
        """A step is complete; ``tokens`` of all ranks went into it."""
        now = time.monotonic()
        self._recent.append((now, tokens))
        self._update(
            step=step,
            epoch=step * self._epochs_per_step,
            loss=loss,
            learning_rate=learning_rate,
            tokens_per_second=self._tokens_per_second(),
            estimated_remaining_seconds=self._remaining_seconds(step),
        )
        if now - self._spoke_at >= _MIN_SECONDS or step == self.progress.total_steps:
            self._speak()

    def _update(self, **changes: object) -> None:
        with self._lock:
            self.progress = self.progress.model_copy(update=changes)

    def _take_note(self) -> None:
        if self._out is not None and self._note is not None:
            self._note(self.progress.strategy, self.progress.warning)

    def _tokens_per_second(self) -> float | None:
        if len(self._recent) < 2:
            return None
        elapsed = self._recent[-1][0] - self._recent[0][0]
        return sum(tokens for _, tokens in list(self._recent)[1:]) / max(elapsed, 1e-9)

    def _remaining_seconds(self, step: int) -> float | None:
        if len(self._recent) < 2:
            return None
        per_step = (self._recent[-1][0] - self._recent[0][0]) / (len(self._recent) - 1)
        return per_step * (self.progress.total_steps - step)

    def _speak(self) -> None:
        self._spoke_at = time.monotonic()
        with self._lock:
            line = self.progress
        self._say(line)

    def _say(self, line: Line) -> None:
        if self._out is None:
            return
        text = stamped(line)
        with self._lock:
            self._out.write(text + "\n")
            self._out.flush()

    def _beat(self) -> None:
        while True:
            time.sleep(1.0)
            if time.monotonic() - self._spoke_at >= HEARTBEAT_SECONDS - 1.5:
                self._speak()
