"""What launchers make of their workers' and peers' deaths; the workers run a few lines instead of a recipe."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainer.tiny import Assets, Launch, a_config, free_port, stub_recipe

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(120)]

IDLE = "time.sleep(600)"


def gang_config(assets: Assets, folder: Path, nodes: int = 2) -> dict[str, Any]:
    """One rank on each of some nodes."""
    config = a_config(assets, folder)
    config["topology"] |= {"nodes": nodes, "masterPort": free_port()}
    config["training"]["gradientAccumulationSteps"] = -(-2 // nodes)
    return config


def start_pods(assets: Assets, folder: Path, body: str = IDLE, nodes: int = 2) -> list[Launch]:
    """A gang whose workers are all running, and whose launchers have heard each other."""
    config, env = gang_config(assets, folder, nodes), stub_recipe(folder / "stub", body)
    pods = [Launch(config, folder / str(node), JOB_COMPLETION_INDEX=str(node), **env) for node in range(nodes)]
    for pod in pods:
        pod.wait_until(lambda pod=pod: len(pod.workers()) == 1, "a worker")  # type: ignore[misc]
    time.sleep(3.0)
    return pods


def test_a_killed_worker_is_named_on_every_pod(assets: Assets, tmp_path: Path) -> None:
    """Its own pod says how it ended, the others whom they lost; none of them waits for a collective."""
    pods = start_pods(assets, tmp_path, nodes=3)
    started = time.monotonic()
    pods[1].kill(pods[1].workers()[0])
    endings = [pod.end(seconds=15) for pod in pods]

    assert [ending.code for ending in endings] == [76, 137, 76]
    assert [ending.termination.cause for ending in endings] == ["PeerLost", "Killed", "PeerLost"]
    assert {ending.termination.rank for ending in endings} == {1}
    assert endings[0].termination.message == endings[2].termination.message == "rank 1 (node 1) ended with 137"
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("node", [0, 1])
def test_a_frozen_pod_is_lost_and_its_ranks_are_named(assets: Assets, tmp_path: Path, node: int) -> None:
    """It sends no FIN; when it wakes up, it ends as a victim, too."""
    pods = start_pods(assets, tmp_path)
    frozen, survivor = pods[node], pods[1 - node]
    workers = survivor.workers()
    started = time.monotonic()
    frozen.process.send_signal(signal.SIGSTOP)
    ending = survivor.end(seconds=20)

    assert time.monotonic() - started < 15
    assert (ending.code, ending.termination.cause, ending.termination.rank) == (76, "PeerLost", node)
    assert ending.termination.message == f"rank {node} (node {node}) has not been heard of for 12 s"
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.end(seconds=20).code == 76


def test_a_cause_on_this_pod_wins_over_a_lost_peer(assets: Assets, tmp_path: Path) -> None:
    """It came a moment later, but is a reason of its own."""
    body = """
        if self.world.rank == 0:
            while not (self.handoff.folder / "now").exists():
                time.sleep(0.05)
            raise KeyError("weights")
        time.sleep(600)
    """
    pods = start_pods(assets, tmp_path, body)
    (folder,) = [
        Path(entry.partition("=")[2])
        for entry in Path(f"/proc/{pods[0].workers()[0]}/environ").read_text().split("\0")
        if entry.startswith("FINETUNE_HANDOFF=")
    ]
    pods[1].kill(pods[1].workers()[0])
    pods[0].wait_until(lambda: "heartbeat: rank 1" in (tmp_path / "0" / "stderr").read_text(), "the news")
    (folder / "now").touch()
    ending = pods[0].end(seconds=15)

    assert (ending.code, ending.termination.message) == (1, "KeyError: 'weights'")


def test_an_abort_by_the_communication_library_is_a_victims_end(assets: Assets, tmp_path: Path) -> None:
    """NCCL's own thread ends the process with SIGABRT when a peer is gone."""
    pods = start_pods(assets, tmp_path)
    worker = pods[0].workers()[0]
    pods[1].kill(pods[1].workers()[0])
    pods[0].wait_until(lambda: "heartbeat: rank 1" in (tmp_path / "0" / "stderr").read_text(), "the news")
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGABRT)

    assert pods[0].end(seconds=15).termination.message == "rank 1 (node 1) ended with 137"


def test_sigterm_while_the_peer_is_dead_is_a_preemption(assets: Assets, tmp_path: Path) -> None:
    """The worker sits in what would be a collective, and nobody has noticed the silence yet."""
    pods = start_pods(assets, tmp_path)
    pods[1].process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    started = time.monotonic()
    pods[0].terminate()
    ending = pods[0].end(seconds=20)
    pods[1].process.kill()

    assert (ending.code, ending.termination.cause) == (75, "Preempted")
    assert time.monotonic() - started < 15


def test_clean_ends_lose_nobody(assets: Assets, tmp_path: Path) -> None:
    """Whoever is ready first may go, while rank 0 still publishes."""
    pods = start_pods(assets, tmp_path, "time.sleep(18 if self.world.rank == 0 else 6)")
    endings = [pod.end(seconds=40) for pod in pods]

    assert [(ending.code, ending.termination.outcome) for ending in endings] == [(0, "Succeeded")] * 2
    assert not any("heartbeat" in ending.stderr for ending in endings)


def test_sigterm_while_the_launcher_still_imports_is_heard(assets: Assets, tmp_path: Path) -> None:
    """As process 1 of a container it would otherwise never know of it."""
    env = stub_recipe(tmp_path / "stub", IDLE) | {"STUB_SIGTERM_AT": "finetune_trainer.launcher"}
    ending = Launch(a_config(assets, tmp_path), tmp_path, **env).end(seconds=15)

    assert (ending.code, ending.termination.outcome) == (75, "Preempted")


@pytest.mark.parametrize(
    ("body", "is_stopped"),
    [
        pytest.param('re.match("(a+)+$", "a" * 64 + "b")', False, id="interpreter-blocked"),
        pytest.param("time.sleep(600)", True, id="process-stopped"),
    ],
)
def test_a_worker_whose_watchdog_cannot_run_is_a_hang(
    assets: Assets, tmp_path: Path, body: str, is_stopped: bool
) -> None:
    """The launcher keeps the same deadlines; where signals still arrive, the stacks are in the log."""
    env = stub_recipe(tmp_path / "stub", f'self.watchdog.enter("step 7", 3.0)\n{body}')
    launch = Launch(a_config(assets, tmp_path), tmp_path, **env)
    launch.wait_until(lambda: len(launch.workers()) == 1, "a worker")
    time.sleep(2.0)
    if is_stopped:
        os.kill(launch.workers()[0], signal.SIGSTOP)
    ending = launch.end(seconds=30)

    assert (ending.code, ending.termination.cause, ending.termination.rank) == (78, "Hang", 0)
    assert ending.termination.message.startswith("step 7 took longer than 3 s, and the process could not even say so")
    assert ("most recent call first" in ending.stderr) == (not is_stopped)


def test_running_out_of_memory_leaves_a_picture(assets: Assets, tmp_path: Path) -> None:
    """Of what was being done, and of how much it took."""
    body = """
        self.handoff.longest_tokens = 900
        self.watchdog.enter("dry step", 60.0)
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    """
    ending = Launch(a_config(assets, tmp_path), tmp_path, **stub_recipe(tmp_path / "stub", body)).end(seconds=20)
    memory = ending.termination.memory

    assert (ending.code, ending.termination.cause) == (77, "OutOfMemory")
    assert memory is not None
    assert (memory.phase, memory.longest_tokens, memory.device_total_bytes) == ("dry step", 900, None)
    assert memory.host_peak_bytes is not None
    assert memory.host_peak_bytes > 10 * 2**20


LIMIT = 300 * 2**20


@pytest.fixture
def limited() -> Iterator[Path]:
    """A cgroup with a memory limit, v2 or v1."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a cgroup with a memory limit")
    root = Path("/sys/fs/cgroup")
    is_v2 = (root / "cgroup.controllers").exists()
    folder = root / ("" if is_v2 else "memory") / f"finetune-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(LIMIT))
        if is_v2:
            (folder / "memory.oom.group").write_text("0")
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no cgroup with a memory limit can be made here: {error}")
    yield folder
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            folder.rmdir()
        time.sleep(0.1)


def test_a_worker_that_the_kernel_kills_for_its_memory_ends_with_77(
    assets: Assets, tmp_path: Path, limited: Path
) -> None:
    """The container survives, so the kubelet would not say OOMKilled."""
    body = """
        self.handoff.longest_tokens = 900
        self.watchdog.enter("step 17", 60.0)
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)))
    """
    wrap = ["sh", "-c", f'echo $$ >{limited}/cgroup.procs && exec "$@"', "sh"]
    ending = Launch(a_config(assets, tmp_path), tmp_path, wrap=wrap, **stub_recipe(tmp_path / "stub", body)).end(30)
    memory = ending.termination.memory

    assert (ending.code, ending.termination.cause, ending.termination.rank) == (77, "OutOfMemory", 0)
    assert ending.termination.message.endswith("the memory of 0.3 GiB of the container was used up")
    assert memory is not None
    assert (memory.phase, memory.longest_tokens, memory.host_limit_bytes) == ("step 17", 900, LIMIT)
    assert memory.host_peak_bytes is not None
    assert LIMIT / 2 < memory.host_peak_bytes <= LIMIT * 1.1


def test_launchers_of_another_attempt_are_strangers(assets: Assets, tmp_path: Path) -> None:
    """What happens to them is no news here."""
    config, env = gang_config(assets, tmp_path), stub_recipe(tmp_path / "stub", "time.sleep(6)")
    other = config | {"attempt": 2}
    pods = [
        Launch(one, tmp_path / str(node), JOB_COMPLETION_INDEX=str(node), **env)
        for node, one in enumerate((config, other))
    ]
    pods[1].wait_until(lambda: len(pods[1].workers()) == 1, "a worker")
    pods[1].kill(pods[1].workers()[0])

    assert (pods[1].end(30).code, pods[0].end(30).code) == (137, 0)
