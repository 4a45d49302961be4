"""Rank 0's writer: when a checkpoint is due, and writing it while training goes on.

The step is held up only while state is copied to host memory. Serialising, hashing and uploading happen in a
background thread that calls no collective; the next save waits until it is done, so saves never overlap and
the host buffers can be reused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from finetune_trainer.checkpoint import Snapshot, encode
from finetune_trainer.clock import utc_now
from finetune_trainer.config import TrainConfig
from finetune_trainer.messages import CheckpointRef
from finetune_trainer.state_file import StateFile
from finetune_trainer.store import CheckpointStore, Spot
from finetune_trainer.watchdog import Watchdog

_FIRST_SECONDS = 120.0
"""Before anything is known about the cost."""
_SHORTEST_SECONDS = 30.0
_COST_SHARE = 0.01
"""Automatic checkpoints hold up training for at most this share of the time."""


class Cadence:
    """When the next checkpoint is due; the clock is passed in."""

    def __init__(self, interval_seconds: float | None, now: float) -> None:
        """None = automatic: 120 s, then 30 s where saving is cheap and longer where not. 0 = after every step."""
        self._explicit = interval_seconds
        self._automatic = _FIRST_SECONDS
        self._last = now

    def is_due(self, now: float) -> bool:
        """Whether the interval has passed since the last save began."""
        return now - self._last >= (self._automatic if self._explicit is None else self._explicit)

    def record(self, now: float, stall_seconds: float) -> None:
        """A save began now and held up the step for so long."""
        self._last = now
        self._automatic = max(_SHORTEST_SECONDS, stall_seconds / _COST_SHARE)


class Saver:
    """Writes snapshots in the background, prunes, and notices newer gangs. Exists on rank 0 only."""

    def __init__(
        self,
        store: CheckpointStore,
        config: TrainConfig,
        fence: int,
        watchdog: Watchdog,
        on_saved: Callable[[CheckpointRef], None],
    ) -> None:
        self._store = store
        self._config = config
        self._fence = fence
        self._watchdog = watchdog
        self._on_saved = on_saved
        self._file = StateFile()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.superseded_by: int | None = None
        """The fence of a newer gang of this run, once one was seen."""

    @property
    def is_busy(self) -> bool:
        """Whether the previous snapshot is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, snapshot: Snapshot) -> None:
        """Write a snapshot in the background, after the previous one is through.

        Raises:
            Exception: whatever made the previous save fail.
        """
        self.join()
        self._thread = threading.Thread(target=self._write_guarded, args=(snapshot,), name="saver", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the writer.

        Raises:
            Exception: whatever made the save fail: a run whose checkpoints cannot be written must not go on.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raise what made the last save fail, once, without waiting for the writer."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def check_superseded(self) -> bool:
        """Whether a newer gang has claimed the run."""
        highest = self._store.highest_fence()
        if highest > self._fence:
            self.superseded_by = highest
        return self.superseded_by is not None

    def _write_guarded(self, snapshot: Snapshot) -> None:
        try:
            with self._watchdog.limit("save", self._config.phase_limits.save):
                self._write(snapshot)
        except Exception as error:  # raised again in the main thread
            self._error = error

    def _write(self, snapshot: Snapshot) -> None:
        if self.check_superseded():
            return
        state, manifest = encode(snapshot, self._config, self._fence, self._file)
        uri = self._store.save(Spot(self._fence, snapshot.step), state, manifest)
        self._on_saved(CheckpointRef(step=snapshot.step, uri=uri, time=utc_now()))
        self._store.prune(self._fence, self._config.checkpoint.keep)
