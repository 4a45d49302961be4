"""The workers of one pod: from their start until the last one is reaped, whatever happens to them.

Every way in which waiting could last for ever has its own clock here: workers that were told to stop, that
outlive one that failed, that sit in a collective with a lost peer, or whose watchdog cannot run. Torch-free.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.host_memory import HostMemory
from finetune_trainer.messages import TrainTermination
from finetune_trainer.outcome import Handoff, Watch
from finetune_trainer.signals import StopRequest
from finetune_trainer.worker import DUMP_SIGNAL

STOP_SECONDS = 12.0
"""Between SIGTERM and SIGKILL for the workers; the pod is promised to end within 15 s."""
SETTLE_SECONDS = 10.0
"""How long workers may outlive the first that failed: they end as its victims, or hang in a collective."""
GUARD_SECONDS = 10.0
"""How long after a deadline a worker's own watchdog may take; then it is taken for blocked, too."""
_DUMP_SECONDS = 1.0
_GUARD_POLL_SECONDS = 1.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Exit:
    """How one worker ended."""

    rank: int
    """Global rank."""
    code: int
    """Exit code, or minus the signal's number."""
    by_us: bool = False
    """Whether the launcher killed it."""
    is_out_of_memory: bool = False
    """Whether the kernel killed it because the container's memory was used up."""
    peak_bytes: int | None = None
    """Peak resident memory."""
    is_beside_loss: bool = False
    """Whether a peer was lost already."""

    @property
    def is_conclusive(self) -> bool:
        """Whether it tells why the gang ended; success and a lost peer do not.

        NCCL's own thread aborts the process when a peer is gone: that is no cause where we know of the peer.
        """
        is_victim = self.code == ExitCode.PEER_LOST or (self.code == -signal.SIGABRT and self.is_beside_loss)
        return not self.by_us and self.code != ExitCode.OK and not is_victim

    @property
    def told_code(self) -> int:
        """What others are told: the exit code, as a shell would say it."""
        if self.is_out_of_memory:
            return ExitCode.OUT_OF_MEMORY
        return self.code if self.code >= 0 else 128 - self.code


class Gang:
    """Supervises the workers that the launcher has started."""

    def __init__(
        self,
        workers: dict[int, subprocess.Popen[bytes]],
        stop: StopRequest,
        handoff: Handoff,
        peers: Heartbeat,
        memory: HostMemory,
    ) -> None:
        """``workers`` by global rank."""
        self._workers = workers
        self._running = {worker.pid: rank for rank, worker in workers.items()}
        self._stop = stop
        self._handoff = handoff
        self._peers = peers
        self._memory = memory
        self._deadline: float | None = None
        self._killed = False
        self._guard_at = 0.0
        self._hung: dict[int, float] = {}
        self.was_stopped = False
        """Whether SIGTERM arrived while workers were running."""

    def wait(self) -> list[Exit]:
        """Supervise until all have ended; their ends in the order in which they happened."""
        exits: list[Exit] = []
        while self._running:
            exits += self._reap()
            if self._stop.requested and not self.was_stopped:
                self._pass_sigterm_on()
            if any(end.code != 0 for end in exits):
                self._hurry(SETTLE_SECONDS)
            if self._peers.loss is not None and not self.was_stopped:  # rank 0 may be saving: a stop has its own time
                self._hurry(self._peers.loss.patience)
            self._guard_watchdogs()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._kill_all()
            time.sleep(_POLL_SECONDS)
        return exits

    def _reap(self) -> list[Exit]:
        """Everything that has ended, our workers and orphans that were handed to process 1."""
        exits = []
        while self._running:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            rank = self._running.pop(pid, None)
            if rank is None:
                continue
            self._workers[rank].returncode = code = os.waitstatus_to_exitcode(status)
            end = self._judge(rank, code, usage.ru_maxrss * 1024)
            exits.append(end)
            if end.code != ExitCode.OK and not end.by_us:
                self._peers.report(rank, end.told_code)
        return exits

    def _judge(self, rank: int, code: int, peak_bytes: int) -> Exit:
        is_killed = code == -signal.SIGKILL
        if is_killed and rank in self._hung and not self._killed:
            return Exit(rank, ExitCode.HANG)
        return Exit(
            rank,
            code,
            by_us=self._killed and is_killed,
            is_out_of_memory=is_killed and not self._killed and self._memory.has_killed,
            peak_bytes=peak_bytes,
            is_beside_loss=self._peers.loss is not None and self._peers.loss.is_cause,
        )

    def _pass_sigterm_on(self) -> None:
        self.was_stopped = True
        self._hurry(STOP_SECONDS)
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)

    def _hurry(self, seconds: float) -> None:
        """The workers have so long from now; what was set before may be sooner."""
        self._deadline = min(self._deadline or float("inf"), time.monotonic() + seconds)

    def _kill_all(self) -> None:
        """Each worker leads its own process group, so what it started goes too."""
        self._killed = True
        for pid in self._running:
            _kill_group(pid)

    def _guard_watchdogs(self) -> None:
        """End workers by their watchdogs' deadlines where these cannot: the process is stopped, or blocked in C."""
        now = time.monotonic()
        if now < self._guard_at:
            return
        self._guard_at = now + _GUARD_POLL_SECONDS
        for pid, rank in self._running.items():
            watch = self._handoff.read_watch(rank)
            if rank in self._hung:
                if now > self._hung[rank] + _DUMP_SECONDS:
                    _kill_group(pid)
            elif watch.deadline is not None and now > watch.deadline + GUARD_SECONDS:
                self._hung[rank] = now
                self._declare_hung(pid, rank, watch)

    def _declare_hung(self, pid: int, rank: int, watch: Watch) -> None:
        text = f"{watch.text}, and the process could not even say so: it is stopped, or its interpreter is blocked"
        print(f"rank {rank}: {text}; stacks of all threads follow", file=sys.stderr, flush=True)
        os.kill(pid, DUMP_SIGNAL)
        hang = TrainTermination(outcome="Failed", cause="Hang", exit_code=ExitCode.HANG, rank=rank, message=text)
        self._handoff.write_outcome(rank, hang)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
