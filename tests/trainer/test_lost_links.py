"""Two pods on machines of their own, with real ranks: a cable is cut, or a machine never comes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.store import CheckpointStore
from trainer.tiny import Assets, Launch, a_config

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(600)]

PROMISE_SECONDS = 15.0
ADDRESSES = ("10.213.77.1", "10.213.77.2")


@dataclass
class Network:
    """Two machines on a switch, each a network namespace.

    A port that goes down at the switch silences its machine as a lost machine is silent: no FIN, no RST and no
    ICMP error reaches the other.
    """

    switch: str
    machines: tuple[str, str]

    def connect(self) -> None:
        """Make it."""
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for machine, address in zip(self.machines, ADDRESSES, strict=True):
            port = f"port{address[-1]}"
            ip("netns", "add", machine)
            ip("-n", machine, "link", "set", "lo", "up")
            ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine)
            ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", machine, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", machine, "link", "set", "eth0", "up")

    def cut(self) -> None:
        """Silence the second machine."""
        ip("-n", self.switch, "link", "set", f"port{ADDRESSES[1][-1]}", "down")

    def remove(self) -> None:
        """Its devices go with it."""
        for name in (*self.machines, self.switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def ip(*words: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of its own for each test."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, to make network namespaces")
    prefix = f"ft-{uuid.uuid4().hex[:6]}"
    network = Network(f"{prefix}-s", (f"{prefix}-0", f"{prefix}-1"))
    try:
        try:
            network.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here: {error.stderr.decode().strip()}")
        yield network
    finally:
        network.remove()


def two_nodes(assets: Assets, folder: Path, **topology: Any) -> dict[str, Any]:
    """One rank on each, with more steps than there is time."""
    config = a_config(assets, folder, ranks=2, max_steps=100_000)
    config["topology"] |= {"nodes": 2, "processesPerNode": 1, **topology}
    config["evaluation"] = {"prompts": []}
    return config


def start_training(network: Network, assets: Assets, folder: Path) -> list[Launch]:
    """Both pods; returns when they have trained a few steps together."""
    config = two_nodes(assets, folder, masterAddress=ADDRESSES[0])
    pods = [
        Launch(
            config,
            folder / str(node),
            wrap=["ip", "netns", "exec", machine],
            JOB_COMPLETION_INDEX=str(node),
            GLOO_SOCKET_IFNAME="eth0",
        )
        for node, machine in enumerate(network.machines)
    ]
    store = CheckpointStore(config["checkpoint"]["uri"])
    pods[0].wait_until(lambda: bool(store.spots()), "a checkpoint")
    return pods


def test_a_cut_cable_ends_both_pods_in_time(network: Network, assets: Assets, tmp_path: Path) -> None:
    """Each names the other's rank; the ranks sit in a collective, and none of them outlives its pod."""
    pods = start_training(network, assets, tmp_path)
    workers = [worker for pod in pods for worker in pod.workers()]
    network.cut()
    cut_at = time.monotonic()
    endings, seconds = [], []
    for pod in pods:
        endings.append(pod.end(seconds=30))
        seconds.append(time.monotonic() - cut_at)
    print(f"ended {seconds} s after the cut")

    assert [ending.code for ending in endings] == [76, 76]
    assert [ending.termination.cause for ending in endings] == ["PeerLost"] * 2
    assert [ending.termination.rank for ending in endings] == [1, 0]
    assert endings[0].termination.message == "rank 1 (node 1) has not been heard of for 12 s"
    assert endings[0].termination.step
    assert endings[0].termination.checkpoint is not None
    assert max(seconds) < PROMISE_SECONDS
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_sigterm_after_a_cut_is_a_preemption_in_time(network: Network, assets: Assets, tmp_path: Path) -> None:
    """The ranks cannot agree on a stop any more."""
    pods = start_training(network, assets, tmp_path)
    network.cut()
    time.sleep(1.0)
    pods[0].terminate()
    told_at = time.monotonic()
    ending = pods[0].end(seconds=30)
    seconds = time.monotonic() - told_at
    print(f"ended {seconds} s after SIGTERM")

    assert (ending.code, ending.termination.cause) == (75, "Preempted")
    assert ending.termination.checkpoint is not None
    assert seconds < PROMISE_SECONDS
    pods[1].end(seconds=30)


@pytest.mark.parametrize("node", [1])
def test_sigterm_while_waiting_for_a_peer_is_a_preemption_in_time(assets: Assets, tmp_path: Path, node: int) -> None:
    """The rendezvous blocks in C, where no handler of Python runs."""
    pod = Launch(two_nodes(assets, tmp_path), tmp_path, JOB_COMPLETION_INDEX=str(node))
    time.sleep(12.0)  # the imports are done, and the rendezvous has begun
    pod.terminate()
    told_at = time.monotonic()
    ending = pod.end(seconds=30)
    seconds = time.monotonic() - told_at
    print(f"ended {seconds} s after SIGTERM")

    assert (ending.code, ending.termination.cause) == (75, "Preempted")
    assert seconds < PROMISE_SECONDS


@pytest.mark.parametrize("node", [0, 1])
def test_a_peer_that_never_comes_is_named(assets: Assets, tmp_path: Path, node: int) -> None:
    """After the rendezvous' limit."""
    config = two_nodes(assets, tmp_path)
    config["phaseLimits"] |= {"rendezvous": 3.0}
    ending = Launch(config, tmp_path, JOB_COMPLETION_INDEX=str(node)).end(seconds=60)

    assert (ending.code, ending.termination.cause, ending.termination.rank) == (76, "PeerLost", 1 - node)
    assert ending.termination.message == f"rank {1 - node} (node {1 - node}) has never come"
