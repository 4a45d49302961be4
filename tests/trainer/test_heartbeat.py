"""Launchers that beat over real sockets: what one of them knows, the others learn."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer import heartbeat, roll
from finetune_trainer.config import Topology
from finetune_trainer.heartbeat import Heartbeat, Word
from trainer.tiny import free_port

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60)]


class Pods:
    """Launchers' heartbeats of one gang, in one process."""

    def __init__(self, nodes: int) -> None:
        self.topology = Topology(nodes=nodes, processes_per_node=1, device="cpu", master_port=free_port())
        self.beats = [Heartbeat(self.topology, node, "gang") for node in range(nodes)]

    def start(self) -> list[Heartbeat]:
        """All of them; returns when they have heard each other."""
        for beat in self.beats:
            beat.start()
        wait_for(lambda: all(beat._wires for beat in self.beats))
        wait_for(lambda: all(wire.node is not None for beat in self.beats for wire in beat._wires))
        wait_for(lambda: len(self.beats[0]._wires) == len(self.beats) - 1)
        return self.beats


@pytest.fixture
def pods() -> Iterator[Pods]:
    """A gang of three."""
    gang = Pods(3)
    yield gang
    for beat in gang.beats:
        beat.goodbye(0)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pods]:
    """A gang of two that has met; one is enough for all examples of a property."""
    gang = Pods(2)
    gang.start()
    yield gang
    for beat in gang.beats:
        beat.goodbye(0)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def drop_dead(beat: Heartbeat) -> None:
    """As when its process is killed: the connections close, and nothing is said."""
    beat._farewell_until = 0.0
    beat._thread.join()


def fall_silent(beat: Heartbeat) -> None:
    """As when the machine is gone: the connections stay open, as far as anybody knows."""
    beat._tick = lambda _now: time.sleep(0.1)  # type: ignore[method-assign]


def messages(beats: list[Heartbeat]) -> list[str]:
    """What each says of the loss."""
    return [beat.loss.message if beat.loss else "" for beat in beats]


def test_a_single_pod_has_nobody_to_lose() -> None:
    """And no thread, and no port."""
    (alone,) = Pods(1).beats
    alone.start()
    alone.report(0, 1)
    alone.goodbye(1)

    assert alone.explain() is None
    assert not alone._thread.is_alive()


def test_the_end_of_a_worker_is_known_everywhere(pods: Pods) -> None:
    """Also on pods that it does not talk to."""
    beats = pods.start()
    beats[1].report(1, 137)
    wait_for(lambda: all(messages([beats[0], beats[2]])))

    assert messages([beats[0], beats[2]]) == ["rank 1 (node 1) ended with 137"] * 2


def test_orderly_ends_are_no_losses(pods: Pods) -> None:
    """In any order, and quickly."""
    beats = pods.start()
    for beat in (beats[1], beats[0], beats[2]):
        started = time.monotonic()
        beat.goodbye(0)
        assert not beat._thread.is_alive()
        assert time.monotonic() - started < 1.5
    assert messages(beats) == ["", "", ""]


@pytest.mark.parametrize("node", [0, 1])
def test_a_pod_that_dies_is_lost_at_once(pods: Pods, node: int) -> None:
    """Within the moment that a goodbye might take."""
    beats = pods.start()
    others = [beat for beat in beats if beat is not beats[node]]
    drop_dead(beats[node])
    wait_for(lambda: all(messages(others)), seconds=3.0)

    assert messages(others) == [f"rank {node} (node {node}) has gone away without a word"] * 2


@pytest.mark.parametrize("node", [0, 2])
def test_a_pod_that_falls_silent_is_lost_everywhere(pods: Pods, node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a shorter silence than in earnest."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(roll, "SILENCE_SECONDS", 4.0)
    beats = pods.start()
    others = [beat for beat in beats if beat is not beats[node]]
    fall_silent(beats[node])
    wait_for(lambda: all(messages(others)))

    assert messages(others) == [f"rank {node} (node {node}) has not been heard of for 12 s"] * 2


def test_one_who_comes_late_hears_the_news() -> None:
    """It failed before the third pod was there."""
    gang = Pods(3)
    for beat in gang.beats[:2]:
        beat.start()
    gang.beats[1].report(1, 65)
    wait_for(lambda: gang.beats[0].loss is not None)
    gang.beats[2].start()
    wait_for(lambda: gang.beats[2].loss is not None)

    assert messages(gang.beats)[2] == "rank 1 (node 1) ended with 65 (UserError)"
    for beat in gang.beats:
        beat.goodbye(76)


def test_a_connection_that_breaks_is_made_anew(pods: Pods) -> None:
    """A reset by the network is no loss, and what was said meanwhile is heard."""
    beats = pods.start()
    old = beats[1]._wires[0]
    old.sock.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: bool(beats[1]._wires) and beats[1]._wires[0] is not old)
    beats[1].report(1, 1)
    wait_for(lambda: beats[2].loss is not None)

    assert messages(beats) == ["rank 1 (node 1) ended with 1", "", "rank 1 (node 1) ended with 1"]


def test_strangers_on_the_port_do_no_harm(pods: Pods) -> None:
    """Noise, an endless line, another gang, somebody who claims to be another node, and silent ones."""
    beats = pods.start()
    say = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\x00" * 40_000,
        Word(gang="other", kind="lost", node=1).model_dump_json(by_alias=True).encode() + b"\n",
        Word(gang="gang", kind="ended", node=1, rank=7, code=1).model_dump_json(by_alias=True).encode() + b"\n",
        b'{"gang":"gang","kind":"beat","node":0}\n{"gang":"gang","kind":"beat","node":99}\n',
    ]
    address = ("127.0.0.1", pods.topology.heartbeat_port)
    silent = [socket.create_connection(address) for _ in range(40)]
    for text in say:
        with closing(socket.create_connection(address)) as stranger:
            stranger.sendall(text)
            stranger.settimeout(5)
            with pytest.raises((ConnectionError, AssertionError)):
                assert stranger.recv(1)
    for sock in silent:
        sock.close()
    time.sleep(1.5)

    assert messages(beats) == ["", "", ""]
    assert all(beat._thread.is_alive() for beat in beats)


@settings(max_examples=20)
@given(noise=st.binary(max_size=600))
def test_no_bytes_break_it(pair: Pods, noise: bytes) -> None:
    """Whatever arrives, the thread lives and nobody is lost."""
    with closing(socket.create_connection(("127.0.0.1", pair.topology.heartbeat_port))) as stranger:
        stranger.sendall(noise)

    assert pair.beats[0]._thread.is_alive()
    assert messages(pair.beats) == ["", ""]


def test_who_never_came_is_named_when_the_rendezvous_failed() -> None:
    """At once: waiting longer tells no more."""
    gang = Pods(3)
    for beat in gang.beats[:2]:
        beat.start()
    wait_for(lambda: len(gang.beats[0]._wires) == 1)
    wait_for(lambda: gang.beats[0]._wires[0].node is not None)
    started = time.monotonic()
    loss = gang.beats[0].explain()
    gang.beats[0].goodbye(76)
    other = gang.beats[1].explain()

    assert time.monotonic() - started < 4
    assert loss is not None
    assert loss == other
    assert loss.message == "rank 2 (node 2) has never come"
    gang.beats[1].goodbye(76)
