"""From an exception to the pod's last word, and the small files by which workers hand theirs to the launcher.

A pod has one termination message but many workers, so each worker leaves its own outcome in a folder of the
launcher (``outcome-<rank>.json``). A worker that is killed cannot say anything any more, so it also leaves what
is known while it runs: rank 0 step, checkpoint, strategy and warning, the first worker of each pod the step it resumed
from (``known.json``), every worker what it is doing and until when that must be done (``watch-<rank>.json``).
Torch-free.
"""

from __future__ import annotations

import errno
import sys
import threading
from contextlib import suppress
from pathlib import Path

from finetune_trainer.config import ContractModel
from finetune_trainer.errors import PeerLostError, TrainerError, UserFaultError
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import CheckpointRef, Count, TrainTermination

HANDOFF_ENV = "FINETUNE_HANDOFF"
"""Folder that the launcher made for its workers."""

CAUSES: dict[int, str] = {
    ExitCode.CONFIG: "UserError",
    ExitCode.DATA: "UserError",
    ExitCode.NO_DEVICE: "NoCuda",
    ExitCode.PREEMPTED: "Preempted",
    ExitCode.PEER_LOST: "PeerLost",
    ExitCode.OUT_OF_MEMORY: "OutOfMemory",
    ExitCode.HANG: "Hang",
    ExitCode.NON_FINITE: "NonFinite",
}
"""What an exit code says when its process left no word."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
_PEER_LOST = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "nccl remote error",
    "ncclremoteerror",
    "socket timeout",
    "client socket has timed out",
    "timed out waiting",
    "timed out after",
    "store->get",
    "connection timed out",
    "no route to host",
    "network is unreachable",
    "pair closure",
)
_COLLECTIVES = ("gloo", "nccl")


class Known(ContractModel):
    """What survives a pod's first worker that is killed."""

    step: int | None = None
    resumed_from_step: int | None = None
    strategy: str | None = None
    warning: str | None = None
    checkpoint: CheckpointRef | None = None


class Watch(ContractModel):
    """What a worker is doing, for the launcher that may have to end it or to say what it was at."""

    phase: str = ""
    longest_tokens: Count | None = None
    deadline: float | None = None
    """When the watchdog will end the worker, by the machine's monotonic clock."""
    text: str = ""
    """What the watchdog will say then."""


class Handoff:
    """The folder between a launcher and its workers; writes are atomic, readers take what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.longest_tokens: int | None = None
        """Tokens of the longest sequence of the step in progress, for a picture of the memory."""
        self._known = Known()
        self._lock = threading.Lock()

    def record_step(self, step: int) -> None:
        """Rank 0, main thread: the last completed step."""
        self._record(step=step)

    def record_resumed(self, step: int) -> None:
        """The first worker of a pod: the step of the checkpoint that the attempt goes on from."""
        self._record(resumed_from_step=step)

    def record_said(self, strategy: str, warning: str) -> None:
        """Rank 0: how the model is spread, and the newest warning; empty: there is none."""
        self._record(strategy=strategy or None, warning=warning or None)

    def record_checkpoint(self, checkpoint: CheckpointRef) -> None:
        """Rank 0, possibly in the writer's thread: the last complete checkpoint."""
        self._record(checkpoint=checkpoint)

    def write_outcome(self, rank: int, outcome: TrainTermination) -> None:
        """A worker leaves its last word; where it cannot, its exit code must say enough."""
        try:
            _write(self._outcome_path(rank), outcome.to_json())
        except (OSError, ValueError) as error:
            print(f"rank {rank}: cannot leave its last word: {error}", file=sys.stderr, flush=True)

    def record_watch(self, rank: int, phase: str, deadline: float | None, text: str) -> None:
        """The worker's watchdog changed its mind; where that cannot be written, nothing is better than the old."""
        watch = Watch(phase=phase, longest_tokens=self.longest_tokens, deadline=deadline, text=text)
        path = self._watch_path(rank)
        try:
            _write(path, watch.to_json())
        except OSError:
            with suppress(OSError):
                path.unlink()

    def read_watch(self, rank: int) -> Watch:
        """What the worker is doing; empty when it is unknown."""
        try:
            return Watch.model_validate_json(self._watch_path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Watch()

    def read_known(self) -> Known:
        """What the pod's first worker recorded; all of it only where that is rank 0."""
        try:
            return Known.model_validate_json((self.folder / "known.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Known()

    def read_outcome(self, rank: int) -> TrainTermination | None:
        """A worker's last word, or None when it was killed before it could say it."""
        try:
            return TrainTermination.model_validate_json(self._outcome_path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _record(self, **changes: object) -> None:
        # Each thread changes its own field and leaves the other's, so nothing older is ever written over a newer one.
        with self._lock:
            self._known = self._known.model_copy(update=changes)
            with suppress(OSError):  # a full disk must not end the training that this is only a note about
                _write(self.folder / "known.json", self._known.to_json())

    def _watch_path(self, rank: int) -> Path:
        return self.folder / f"watch-{rank}.json"

    def _outcome_path(self, rank: int) -> Path:
        return self.folder / f"outcome-{rank}.json"


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(f".{threading.get_native_id()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's or the host's allocator gave up (torch's own class is a RuntimeError)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because the other side is gone."""
    if isinstance(error, PeerLostError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(mark in text for mark in _PEER_LOST)


def _is_of_collectives(error: BaseException) -> bool:
    """Whether it comes from torch.distributed: gloo's errors, within a backward pass too, are plain RuntimeErrors."""
    text = str(error).lower()
    return type(error).__name__.startswith("Dist") or any(name in text for name in _COLLECTIVES)


def describe(error: BaseException, rank: int | None = None) -> TrainTermination:
    """The outcome that an exception means; how far the run is, the launcher fills in."""
    if isinstance(error, TrainerError):
        code, cause = error.exit_code, error.cause
    elif is_out_of_memory(error):
        code, cause = ExitCode.OUT_OF_MEMORY, "OutOfMemory"
    elif _is_of_collectives(error) and is_peer_lost(error):
        code, cause = ExitCode.PEER_LOST, "PeerLost"  # NCCL reports some losses only at the next synchronisation
    else:
        code, cause = ExitCode.ERROR, "Application"
    return TrainTermination(
        outcome="Preempted" if code == ExitCode.PREEMPTED else "Failed",
        cause=cause,
        exit_code=code,
        rank=rank,
        message=printable(str(error) if isinstance(error, TrainerError) else last_traceback_line(error)),
        fault=error.fault if isinstance(error, UserFaultError) else None,
    )


def printable(text: str) -> str:
    """The text without lone surrogates, which stand for bytes of file names that are no UTF-8: JSON has none."""
    return text.encode(errors="replace").decode()


def last_traceback_line(error: BaseException) -> str:
    """``KeyError: 'x'``, as the last line of a traceback shows it, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
