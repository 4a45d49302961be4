"""The pod's first process: starts one worker per GPU, passes SIGTERM on, and gives the pod one honest ending.

Not torchrun: it ends with 1 whatever its workers end with, and the operator's decisions rest on exit codes.
Among the workers' ends the first real cause wins over its victims (76, peer lost). As process 1 of a
container it also reaps whatever its children leave behind. Torch-free.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.config import TrainConfig
from finetune_trainer.config_file import load_train_config
from finetune_trainer.errors import PeerLostError, PreemptedError, UserFaultError
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import TrainTermination, fit_termination_message
from finetune_trainer.outcome import CAUSES, HANDOFF_ENV, Handoff, describe
from finetune_trainer.sampler import check_batch_arithmetic
from finetune_trainer.signals import StopRequest
from finetune_trainer.worker import LAUNCHER_PID_ENV

DNS_SECONDS = 60.0
"""How long the master's name may take to appear in the cluster's DNS."""
STOP_SECONDS = 12.0
"""Between SIGTERM and SIGKILL for the workers; the pod is promised to end within 15 s."""
SETTLE_SECONDS = 10.0
"""How long workers may outlive the first that failed: they end as its victims, or hang in a collective."""
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

    @property
    def is_conclusive(self) -> bool:
        """Whether it tells why the gang ended; success and a lost peer do not."""
        return not self.by_us and self.code not in (ExitCode.OK, ExitCode.PEER_LOST)


def launch(config_path: Path, termination_log: Path) -> int:
    """Run the pod; returns its exit code after writing the termination message."""
    stop = StopRequest()
    stop.listen()
    os.umask(0o022)  # what is published must be readable to others
    try:
        config = load_train_config(config_path)
        check_batch_arithmetic(config)
        _wait_for_master(config, stop)
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            handoff = Handoff(Path(folder))
            gang = Gang(_start_workers(config, folder), stop)
            exits = gang.wait()
            outcome = conclude(exits, gang.was_stopped, handoff)
    except UserFaultError as error:
        print(f"{error}; {error.fault.remedy}", file=sys.stderr, flush=True)
        outcome = describe(error)
    except Exception as error:
        traceback.print_exc()
        outcome = describe(error)
    _write_termination(termination_log, outcome)
    return outcome.exit_code


class Gang:
    """The workers of this pod, from their start until the last one is reaped."""

    def __init__(self, workers: dict[int, subprocess.Popen[bytes]], stop: StopRequest) -> None:
        """``workers`` by global rank."""
        self._workers = workers
        self._running = {worker.pid: rank for rank, worker in workers.items()}
        self._stop = stop
        self._deadline: float | None = None
        self._killed = False
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
                self._set_deadline(SETTLE_SECONDS)
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._kill_all()
            time.sleep(_POLL_SECONDS)
        return exits

    def _reap(self) -> list[Exit]:
        """Everything that has ended, our workers and orphans that were handed to process 1."""
        exits = []
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            rank = self._running.pop(pid, None)
            if rank is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._workers[rank].returncode = code
            exits.append(Exit(rank, code, by_us=self._killed and code == -signal.SIGKILL))
        return exits

    def _pass_sigterm_on(self) -> None:
        self.was_stopped = True
        self._set_deadline(STOP_SECONDS)
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds

    def _kill_all(self) -> None:
        """Each worker leads its own process group, so what it started goes too."""
        self._killed = True
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def conclude(exits: list[Exit], was_stopped: bool, handoff: Handoff) -> TrainTermination:
    """The pod's outcome from its workers' ends."""
    outcome = _choose(exits, was_stopped, handoff)
    known = handoff.read_known()
    return outcome.model_copy(
        update={
            "step": outcome.step if outcome.step is not None else known.step,
            "checkpoint": outcome.checkpoint or known.checkpoint,
        }
    )


def _choose(exits: list[Exit], was_stopped: bool, handoff: Handoff) -> TrainTermination:
    if all(end.code == ExitCode.OK for end in exits):
        main = min(exits, key=lambda end: end.rank)
        return handoff.read_outcome(main.rank) or TrainTermination(outcome="Succeeded", exit_code=ExitCode.OK)
    causes = [end for end in exits if end.is_conclusive and not (was_stopped and _is_told(end))]
    if causes:
        return handoff.read_outcome(causes[0].rank) or _without_a_word(causes[0])
    if was_stopped:
        words = [handoff.read_outcome(end.rank) for end in exits if end.code == ExitCode.PREEMPTED]
        return next(filter(None, words), None) or describe(PreemptedError("stopped by SIGTERM before it could save"))
    victims = [handoff.read_outcome(end.rank) for end in exits if end.code == ExitCode.PEER_LOST]
    return next(filter(None, victims), None) or describe(PeerLostError("a worker lost its peers"))


def _is_told(end: Exit) -> bool:
    """Whether this end is what SIGTERM leads to: an orderly stop, or death before a handler was installed."""
    return end.code in (ExitCode.PREEMPTED, -signal.SIGTERM)


def _without_a_word(end: Exit) -> TrainTermination:
    """A worker that could not say anything: a signal (128 + n, as in a shell) or a bare code."""
    if end.code > 0:
        return TrainTermination(
            outcome="Preempted" if end.code == ExitCode.PREEMPTED else "Failed",
            cause=CAUSES.get(end.code, "Application"),
            exit_code=end.code,
            rank=end.rank,
            message=f"rank {end.rank} ended with {end.code} without a word",
        )
    hint = "; nobody asked for that: most likely the kernel, out of memory" if end.code == -9 else ""
    return TrainTermination(
        outcome="Failed",
        cause="Killed",
        exit_code=128 - end.code,
        rank=end.rank,
        message=f"rank {end.rank} was ended by {signal.Signals(-end.code).name}{hint}",
    )


def _start_workers(config: TrainConfig, handoff_folder: str) -> dict[int, subprocess.Popen[bytes]]:
    node_rank = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    count = config.topology.processes_per_node
    return {
        node_rank * count + local_rank: subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "work"],
            env=os.environ | worker_env(config, node_rank, local_rank, handoff_folder),
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        for local_rank in range(count)
    }


def worker_env(config: TrainConfig, node_rank: int, local_rank: int, handoff_folder: str) -> dict[str, str]:
    """What a worker gets on top of the pod's environment; the pod's own choices win for the tunable ones."""
    topology = config.topology
    # torch asks for a user name, and uid 65532 has none
    tunable = {"TOKENIZERS_PARALLELISM": "false", "USER": "finetune"}
    if topology.device == "cpu":
        tunable["OMP_NUM_THREADS"] = "1"  # more threads than cores are 10 times slower
    if topology.nodes == 1:
        tunable["GLOO_SOCKET_IFNAME"] = "lo"
    if config.training.deterministic:
        tunable["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {name: os.environ.get(name, value) for name, value in tunable.items()} | {
        "RANK": str(node_rank * topology.processes_per_node + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(topology.world_size),
        "MASTER_ADDR": topology.master_address,
        "MASTER_PORT": str(topology.master_port),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        HANDOFF_ENV: handoff_folder,
        LAUNCHER_PID_ENV: str(os.getpid()),
    }


def _wait_for_master(config: TrainConfig, stop: StopRequest) -> None:
    """Wait until the master's name resolves: headless services appear in DNS some time after their pods."""
    deadline = time.monotonic() + DNS_SECONDS
    while True:
        stop.check()
        try:
            socket.getaddrinfo(config.topology.master_address, config.topology.master_port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLostError(f"{config.topology.master_address} does not resolve: {error}") from error
            time.sleep(1.0)
        else:
            return


def _write_termination(path: Path, outcome: TrainTermination) -> None:
    try:
        path.write_text(fit_termination_message(outcome), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"cannot write the termination message: {error}", file=sys.stderr, flush=True)
