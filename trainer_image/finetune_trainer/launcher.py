"""The pod's first process: starts one worker per GPU, passes SIGTERM on, and gives the pod one honest ending.

Not torchrun: it ends with 1 whatever its workers end with, and the operator's decisions rest on exit codes.
Among the workers' ends the first real cause wins over its victims (76, peer lost); where all are victims, the
other pods' launchers know whose. As process 1 of a container it also reaps whatever its children leave
behind. Torch-free.
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
from pathlib import Path

from finetune_trainer.compatibility import check_compatibility
from finetune_trainer.config import TrainConfig
from finetune_trainer.config_file import load_train_config
from finetune_trainer.errors import PeerLostError, PreemptedError, UserFaultError
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.gang import Exit, Gang
from finetune_trainer.heartbeat import Heartbeat, gang_name
from finetune_trainer.host_memory import HostMemory
from finetune_trainer.messages import MemoryPicture, TrainTermination, fit_termination_message
from finetune_trainer.outcome import CAUSES, HANDOFF_ENV, Handoff, Watch, describe
from finetune_trainer.roll import Loss
from finetune_trainer.sampler import check_batch_arithmetic
from finetune_trainer.signals import StopRequest
from finetune_trainer.worker import LAUNCHER_PID_ENV

DNS_SECONDS = 60.0
"""How long the master's name may take to appear in the cluster's DNS."""


def launch(config_path: Path, termination_log: Path) -> int:
    """Run the pod; returns its exit code after writing the termination message."""
    stop = StopRequest()
    stop.listen()
    os.umask(0o022)  # what is published must be readable to others
    peers: Heartbeat | None = None
    try:
        config = load_train_config(config_path)
        check_compatibility(config)
        check_batch_arithmetic(config)
        peers = Heartbeat(config.topology, _node_rank(), gang_name(config))
        _wait_for_master(config, stop)
        outcome = _run_workers(config, stop, peers)
    except UserFaultError as error:
        print(f"{error}; {error.fault.remedy}", file=sys.stderr, flush=True)
        outcome = describe(error)
    except Exception as error:
        traceback.print_exc()
        outcome = describe(error, 0 if isinstance(error, PeerLostError) else None)
    _write_termination(termination_log, outcome)
    if peers is not None:
        peers.goodbye(outcome.exit_code)
    return outcome.exit_code


def _run_workers(config: TrainConfig, stop: StopRequest, peers: Heartbeat) -> TrainTermination:
    memory = HostMemory()
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        handoff = Handoff(Path(folder))
        workers = _start_workers(config, folder)
        peers.start()
        gang = Gang(workers, stop, handoff, peers, memory)
        exits = gang.wait()
        outcome = conclude(exits, gang.was_stopped, handoff, peers.loss, memory)
        if outcome.exit_code == ExitCode.PEER_LOST:
            loss = peers.explain(is_interrupted=lambda: stop.requested)
            outcome = conclude(exits, stop.requested, handoff, loss, memory)
    return outcome


def conclude(
    exits: list[Exit],
    was_stopped: bool,
    handoff: Handoff,
    loss: Loss | None = None,
    memory: HostMemory | None = None,
) -> TrainTermination:
    """The pod's outcome from its workers' ends, and from what the other pods say."""
    outcome = _choose(exits, was_stopped, handoff, loss, memory)
    known = handoff.read_known()
    return outcome.model_copy(
        update={
            "step": outcome.step if outcome.step is not None else known.step,
            "resumed_from_step": known.resumed_from_step,
            "strategy": known.strategy,
            "warning": known.warning,
            "checkpoint": outcome.checkpoint or known.checkpoint,
        }
    )


def _choose(
    exits: list[Exit], was_stopped: bool, handoff: Handoff, loss: Loss | None, memory: HostMemory | None
) -> TrainTermination:
    if all(end.code == ExitCode.OK for end in exits):
        main = min(exits, key=lambda end: end.rank)
        return handoff.read_outcome(main.rank) or TrainTermination(outcome="Succeeded", exit_code=ExitCode.OK)
    causes = [end for end in exits if end.is_conclusive and not (was_stopped and _is_told(end))]
    if causes:
        first = causes[0]
        if first.is_out_of_memory:
            return _out_of_host_memory(first, handoff.read_watch(first.rank), memory)
        return handoff.read_outcome(first.rank) or _without_a_word(first)
    if was_stopped:
        words = [handoff.read_outcome(end.rank) for end in exits if end.code == ExitCode.PREEMPTED]
        return next(filter(None, words), None) or describe(PreemptedError("stopped by SIGTERM before it could save"))
    words = [handoff.read_outcome(end.rank) for end in exits if end.code == ExitCode.PEER_LOST]
    victim = next(filter(None, words), None)
    if loss is not None and (loss.is_cause or victim is None):
        return describe(PeerLostError(loss.message), loss.rank)
    # Nobody knows whom it lost, and its own rank is not the one.
    return victim.model_copy(update={"rank": None}) if victim else describe(PeerLostError("a worker lost its peers"))


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
    hint = "; nobody here asked for that" if end.code == -signal.SIGKILL else ""
    return TrainTermination(
        outcome="Failed",
        cause="Killed",
        exit_code=128 - end.code,
        rank=end.rank,
        message=f"rank {end.rank} was ended by {signal.Signals(-end.code).name}{hint}",
    )


def _out_of_host_memory(end: Exit, watch: Watch, memory: HostMemory | None) -> TrainTermination:
    """The kernel ended a worker for its memory: what the worker would have said of itself."""
    limit = memory.limit_bytes if memory else None
    limit_text = f" of {limit / 2**30:.1f} GiB" if limit else ""
    return TrainTermination(
        outcome="Failed",
        cause="OutOfMemory",
        exit_code=ExitCode.OUT_OF_MEMORY,
        rank=end.rank,
        message=f"rank {end.rank} was killed by the kernel: the memory{limit_text} of the container was used up",
        memory=MemoryPicture(
            phase=watch.phase[:64],
            longest_tokens=watch.longest_tokens,
            host_peak_bytes=end.peak_bytes,
            host_limit_bytes=limit,
        ),
    )


def _node_rank() -> int:
    return int(os.environ.get("JOB_COMPLETION_INDEX", "0"))


def _start_workers(config: TrainConfig, handoff_folder: str) -> dict[int, subprocess.Popen[bytes]]:
    node_rank = _node_rank()
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
