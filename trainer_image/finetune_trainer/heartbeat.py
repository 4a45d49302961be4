"""How the pods of a gang notice that one of them is gone: their launchers beat to launcher 0.

A machine that vanishes sends no FIN: the others' collectives would wait for hours and hold their GPUs. So every
launcher holds one TCP connection to launcher 0 (its host is the rendezvous', its port one above), both sides beat
every 3 s, and :mod:`finetune_trainer.roll` says who is lost when. A worker that fails is reported at once, a
launcher that ends says goodbye with its exit code, and launcher 0 passes on what concerns all.

    node 1 ──beat, ended, left──> node 0 ──beat, ended, left, lost──> node 2

One daemon thread does it all, with sockets that never block; when it breaks, the gang is merely as blind as
without it. The port may be reached by anybody, so what is no :class:`Word` of this gang closes its connection,
and connections, lines and queues are bounded. Torch-free.
"""

from __future__ import annotations

import hashlib
import queue
import selectors
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from pydantic import Field

from finetune_trainer.config import ContractModel, Topology, TrainConfig
from finetune_trainer.roll import BEAT_SECONDS, SILENCE_SECONDS, How, Loss, Roll

FAREWELL_SECONDS = 1.0
"""How long the launcher's own end waits until its goodbye was read."""
_TICK_SECONDS = 0.2
_CALL_AGAIN_SECONDS = 0.3
_CONNECT_SECONDS = 2.0
_INTRODUCTION_SECONDS = 5.0
_LINE_LIMIT = 512
_OUTBOX_LIMIT = 65536


class Word(ContractModel):
    """One line of JSON between two launchers."""

    gang: str = Field(max_length=32)
    kind: Literal["beat", "ended", "left", "lost"]
    node: int = Field(ge=0, lt=100_000)
    """Whom it is about; launcher 0 alone speaks of others."""
    rank: int | None = Field(default=None, ge=0, lt=10_000_000)
    """With ``ended``: the worker."""
    code: int = Field(default=0, ge=0, lt=256)
    """With ``ended`` and ``left``: the exit code, as a shell would say it."""
    how: How = "silent"
    """With ``lost``."""


def gang_name(config: TrainConfig) -> str:
    """What tells this gang from another one that finds the same address."""
    parts = (config.job.uid, config.run.digest, str(config.attempt))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


class _Wire:
    """One connection: complete lines in, bounded text out."""

    def __init__(self, sock: socket.socket, now: float, target: Any = None) -> None:
        """``target`` is what was called, as ``getaddrinfo`` has it; None where the other side called."""
        sock.setblocking(False)
        self.sock = sock
        self.target = target
        self.is_connected = target is None
        self.node: int | None = None
        """Who is at the other end, once it has said so."""
        self._since = now
        self._inbox = b""
        self._outbox = b""
        self._is_shut = False

    def read(self) -> list[bytes]:
        """The lines that have arrived.

        Raises:
            OSError: the connection is gone, or the other side speaks something else.
        """
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("closed")
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        if max(map(len, (*lines, self._inbox))) > _LINE_LIMIT:
            raise ConnectionAbortedError("not a launcher")
        return lines

    def check_manners(self, now: float) -> None:
        """Whoever is connected must soon say who they are.

        Raises:
            TimeoutError: nobody is there, or nobody we know.
        """
        limit = _INTRODUCTION_SECONDS if self.is_connected else _CONNECT_SECONDS
        if self.node is None and now - self._since > limit:
            raise TimeoutError("no word of introduction")

    def say(self, word: Word) -> None:
        """Put a word into the outbox; one who does not read gets no more."""
        if len(self._outbox) < _OUTBOX_LIMIT:
            self._outbox += word.model_dump_json(by_alias=True, exclude_defaults=True).encode() + b"\n"

    def flush(self, then_shut: bool = False) -> None:
        """Send what the network takes; ``then_shut`` ends the stream: to close it could lose what is unread."""
        if not self.is_connected:
            return
        if self._outbox:
            with suppress(BlockingIOError):
                self._outbox = self._outbox[self.sock.send(self._outbox) :]
        if then_shut and self.node is not None and not self._outbox and not self._is_shut:
            self.sock.shutdown(socket.SHUT_WR)
            self._is_shut = True


class Heartbeat:
    """This launcher's side of the gang's heartbeat; with a single pod all of it does nothing."""

    def __init__(self, topology: Topology, node: int, gang: str) -> None:
        """``node`` is our own number; ``gang`` as :func:`gang_name` has it."""
        self._address = (topology.master_address, topology.heartbeat_port)
        self._node = node
        self._gang = gang
        self._roll = Roll(node, topology.nodes, topology.processes_per_node)
        self._wire_limit = 2 * topology.nodes + 8
        self._wires: list[_Wire] = []
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._found: list[Any] = []
        self._reached: Any = None
        self._called_at = 0.0
        self._news: deque[Word] = deque(maxlen=256)
        self._said: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._beat_at = 0.0
        self._asks_for_missing = False
        self._farewell_until: float | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._is_alone = topology.nodes == 1
        self.loss: Loss | None = None
        """Why the gang cannot go on, where another pod is the reason; set once, but for a victim whose cause comes."""

    def start(self) -> None:
        """Begin to beat, and to listen on node 0; returns at once."""
        if not self._is_alone:
            self._thread.start()

    def report(self, rank: int, code: int) -> None:
        """A worker of this pod failed: the others may name it."""
        self._say("ended", rank=rank, code=code)

    def explain(self, is_interrupted: Callable[[], bool] = lambda: False) -> Loss | None:
        """Our workers lost a peer: why, as soon as it is known; silence takes its time to be certain."""
        deadline = time.monotonic() + SILENCE_SECONDS + 1.0
        self._asks_for_missing = True
        while self._thread.is_alive() and time.monotonic() < deadline and not is_interrupted():
            if self._roll.is_settled:
                break
            time.sleep(_TICK_SECONDS)
        return self._roll.loss

    def goodbye(self, code: int) -> None:
        """This pod ends with ``code``; returns when all who listen have read it, or after a second."""
        if self._thread.is_alive():
            self._say("left", code=code)
            self._farewell_until = time.monotonic() + FAREWELL_SECONDS
            self._thread.join(FAREWELL_SECONDS + 2 * _TICK_SECONDS)

    def _say(self, kind: Literal["ended", "left"], rank: int | None = None, code: int = 0) -> None:
        if not self._is_alone:
            self._said.put(Word(gang=self._gang, kind=kind, node=self._node, rank=rank, code=code))

    # --- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._node == 0:
                self._listen()
            while not self._is_over():
                self._tick(time.monotonic())
        except Exception:
            traceback.print_exc()
            print("heartbeat: it broke; losses show in collectives alone", file=sys.stderr, flush=True)
        finally:
            self._selector.close()
            for sock in (self._listener, *(wire.sock for wire in self._wires)):
                if sock is not None:
                    sock.close()

    def _is_over(self) -> bool:
        """Nobody is left to whom a goodbye must be said, or time is up."""
        return self._farewell_until is not None and (not self._wires or time.monotonic() > self._farewell_until)

    def _tick(self, now: float) -> None:
        """What has arrived, what is due, what is to be said: in this order, so that nobody unread is judged."""
        is_leaving = self._farewell_until is not None
        if self._should_call(now) and not is_leaving:
            self._call(now)
        for key, _ in self._selector.select(_TICK_SECONDS):
            if key.data is None:
                self._accept(now)
            else:
                with self._dropping(key.data, now):
                    self._read(key.data, now)
        self._judge(now)
        if now - self._beat_at >= BEAT_SECONDS and not is_leaving:
            self._beat_at = now
            self._tell(self._own_beat())
        while not self._said.empty():
            self._tell(self._said.get())
        for wire in list(self._wires):
            with self._dropping(wire, now):
                wire.check_manners(now)
                wire.flush(then_shut=is_leaving)

    def _judge(self, now: float) -> None:
        """Who is lost, and who has to know."""
        verdicts = self._roll.judge(now)
        if self._asks_for_missing:
            verdicts += self._roll.judge_missing()
        if self._node == 0:
            for node, how in verdicts:
                self._tell(Word(gang=self._gang, kind="lost", node=node, how=how))
        for wire in [wire for wire in self._wires if wire.node in {node for node, _ in verdicts}]:
            self._drop(wire, now)  # nobody is there to read our goodbye
        if self._roll.loss is not self.loss:
            self.loss = self._roll.loss
            print(f"heartbeat: {self.loss.message if self.loss else ''}", file=sys.stderr, flush=True)

    def _own_beat(self) -> Word:
        return Word(gang=self._gang, kind="beat", node=self._node)

    def _tell(self, word: Word) -> None:
        """Everybody but the one it is about; who comes later, or comes back, hears the news then."""
        if word.kind != "beat":
            self._news.append(word)
        for wire in self._wires:
            if wire.node is not None and wire.node != word.node:
                wire.say(word)

    # --- connections -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        port = self._address[1]
        try:
            listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
        except (OSError, ValueError):  # no IPv6 here
            listener = socket.create_server(("", port), backlog=128)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, None)

    def _accept(self, now: float) -> None:
        assert self._listener is not None
        with suppress(OSError):
            sock, _ = self._listener.accept()
            if len(self._wires) >= self._wire_limit:
                sock.close()
            else:
                self._add(_Wire(sock, now))

    def _should_call(self, now: float) -> bool:
        is_idle = self._node != 0 and not self._wires and now - self._called_at >= _CALL_AGAIN_SECONDS
        return is_idle and not self._roll.is_gone(0)

    def _call(self, now: float) -> None:
        """Node 0 by its name until it once was reached, then by that address: DNS may block for long."""
        self._called_at = now
        try:
            if self._reached is None and not self._found:
                self._found = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)
            target = self._reached or self._found.pop(0)
            wire = _Wire(socket.socket(*target[:3]), now, target=target)
        except OSError:
            return
        wire.sock.connect_ex(target[4])
        wire.say(self._own_beat())
        self._add(wire)

    def _add(self, wire: _Wire) -> None:
        with suppress(OSError):
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wires.append(wire)
        events = selectors.EVENT_READ if wire.is_connected else selectors.EVENT_WRITE
        self._selector.register(wire.sock, events, wire)

    def _drop(self, wire: _Wire, now: float) -> None:
        if wire not in self._wires:
            return
        self._wires.remove(wire)
        self._selector.unregister(wire.sock)
        wire.sock.close()
        if wire.node is not None and all(other.node != wire.node for other in self._wires):
            self._roll.closed(wire.node, now)

    @contextmanager
    def _dropping(self, wire: _Wire, now: float) -> Iterator[None]:
        """A connection that is gone, or says what no launcher of this gang says, is dropped."""
        try:
            yield
        except (OSError, ValueError):
            self._drop(wire, now)

    # --- words -------------------------------------------------------------------------------------------

    def _read(self, wire: _Wire, now: float) -> None:
        if wire.is_connected:
            for line in wire.read():
                self._hear(wire, Word.model_validate_json(line), now)
            return
        if error := wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "cannot connect")
        wire.is_connected = True
        self._selector.modify(wire.sock, selectors.EVENT_READ, wire)

    def _hear(self, wire: _Wire, word: Word, now: float) -> None:
        """One word from the other end.

        Raises:
            ValueError: no launcher of this gang would say that.
        """
        if word.gang != self._gang or not self._roll.knows(word.node, word.rank):
            raise ValueError("of another gang, or about nobody of this one")
        if wire.node is None:
            self._introduce(wire, word)
        if self._node == 0 and (word.node != wire.node or word.kind == "lost"):
            raise ValueError("speaks for another")
        assert wire.node is not None
        self._roll.heard(wire.node, now)
        if word.kind == "ended" and word.rank is not None:
            self._roll.ended(word.node, word.rank, word.code)
        elif word.kind == "left":
            self._roll.left(word.node, word.code)
        elif word.kind == "lost":
            self._roll.lost(word.node, word.how)
        if self._node == 0 and word.kind in ("ended", "left"):
            self._tell(word)

    def _introduce(self, wire: _Wire, word: Word) -> None:
        if word.kind != "beat" or (self._node != 0 and word.node != 0):
            raise ValueError("the first word must be a beat")
        for older in [other for other in self._wires if other.node == word.node]:
            older.node = None  # it called again: the old connection is no sign of anything
        wire.node = word.node
        self._reached = wire.target
        for news in (*([self._own_beat()] if self._node == 0 else []), *self._news):
            if news.node != wire.node:
                wire.say(news)
