"""An HTTP proxy on loopback that breaks requests on demand: what networks and busy servers do to a client."""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

Kind = Literal[
    "status",
    "delay",
    "reset-before",
    "reset-after",
    "truncate",
    "hang",
    "silent",
    "stale",
    "gone",
    "drop-events",
    "repeat-events",
    "delay-events",
]


_KEPT_ANSWERS = 4
_KEEP_SECONDS = 2.0
_VERSION = re.compile(r"resourceVersion(Match)?=\w+")
"""How new an answer must be, which an answer from the past does not care about."""
_GONE = (
    b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
    b'"message":"too old resource version","reason":"Expired","code":410}}\n'
)


@dataclass(frozen=True)
class Fault:
    """What happens to one request."""

    kind: Kind
    """``status``: answered without asking the server. ``delay``: passed on late. ``reset-before``: the connection
    breaks and the server never hears of it. ``reset-after``: the server did it, but its answer is lost.
    ``truncate``: the connection breaks in the middle of the answer's body. ``hang``: nobody answers. ``silent``: the
    answer begins, and nothing follows. ``stale``: the answer that the same path had some requests ago. Of a watch of
    Kubernetes, ``gone``: the version that it asks for is too old; ``drop-events``, ``repeat-events``,
    ``delay-events``: some of them are not passed on, passed on twice, or late."""
    status: int = 503
    seconds: float = 0.0
    body: bytes = b"injected"
    """Of an answer that is not the server's."""
    retry_after: int | None = None
    """Header ``Retry-After`` of such an answer, in seconds."""
    then: Callable[[], None] | None = None
    """Called just before a connection breaks."""

    @property
    def name(self) -> str:
        """For the ids of tests."""
        return f"{self.status}" if self.kind == "status" else self.kind


class FaultyProxy(ThreadingHTTPServer):
    """Passes everything on to ``upstream`` except what :meth:`inject` asked for."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.injected = 0
        """Requests that were broken so far."""
        self._lock = threading.Lock()
        self._next: list[Fault] = []
        self._choose: Callable[[int], Fault | None] | None = None
        self._choose_by_path: Callable[[str], Fault | None] = lambda path: None
        self._choose_by_request: Callable[[str, str], Fault | None] | None = None
        self._answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self._streams: dict[socket.socket, Callable[[], None]] = {}
        """Connection of a watch that is open -> how to end it."""
        self._count = 0

    def inject(self, *faults: Fault) -> None:
        """Break the next requests, one each."""
        with self._lock:
            self._next += faults

    def inject_by(self, choose: Callable[[int], Fault | None] | None) -> None:
        """Ask ``choose`` with the number of each request from now on."""
        with self._lock:
            self._choose = choose

    def inject_by_path(self, choose: Callable[[str], Fault | None]) -> None:
        """Ask ``choose`` with path and query of each request from now on."""
        with self._lock:
            self._choose_by_path = choose

    def inject_by_request(self, choose: Callable[[str, str], Fault | None] | None) -> None:
        """Ask ``choose`` with method, path and query of each request from now on."""
        with self._lock:
            self._choose_by_request = choose

    def cut_a_watch(self, chance: random.Random) -> None:
        """End one of the watches that are open, also one that is silent, in the middle of its stream."""
        with self._lock:
            if self._streams:
                chance.choice(list(self._streams.values()))()

    def cut_all_watches(self) -> None:
        """End them all: what their faults would still do to them is over."""
        with self._lock:
            for cut in self._streams.values():
                cut()

    @contextmanager
    def open_stream(self, *connections: socket.socket) -> Iterator[None]:
        """A watch has these connections, the client's first."""

        def cut() -> None:
            for connection in connections:
                with suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS as well: not its own, which waits

        with self._lock:
            self._streams[connections[0]] = cut
        try:
            yield
        finally:
            with self._lock:
                del self._streams[connections[0]]

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for a request, if it is its turn."""
        with self._lock:
            self._count += 1
            if self._choose_by_request is not None:
                fault = self._choose_by_request(method, path)
            else:
                fault = self._choose(self._count) if self._choose is not None else self._choose_by_path(path)
            if self._next:
                fault = self._next.pop(0)
            self.injected += fault is not None
            return fault

    def remember(self, path: str, answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], bytes]:
        """Keep an answer for a while; returns the oldest one that is kept for this path."""
        with self._lock:
            kept = self._answers.setdefault(_VERSION.sub("", path), [])
            kept.append(answer)
            del kept[:-_KEPT_ANSWERS]
            return kept[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that go away are what this is about."""


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy in front of a server for the duration of the block; clients speak plain HTTP with it in any case."""
    with FaultyProxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


def _connect(upstream: SplitResult) -> http.client.HTTPConnection:
    if upstream.scheme == "https":
        context = ssl._create_unverified_context()  # a test server signs for itself
        return http.client.HTTPSConnection(upstream.netloc, timeout=30, context=context)
    return http.client.HTTPConnection(upstream.netloc, timeout=30)


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._kept: http.client.HTTPConnection | None = None
        self._kept_since = 0.0

    def finish(self) -> None:
        if self._kept is not None:
            self._kept.close()
        super().finish()

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.take(self.command, self.path)
        if "watch=true" in self.path and (fault is None or fault.kind.endswith("-events")):
            self._stream(body, fault)
        elif fault is None:
            self._relay(body)
        elif fault.kind == "stale":
            self._respond(*self.server.remember(self.path, self._ask(body)))
        elif fault.kind == "gone":
            self._respond(200, {"Content-Type": "application/json"}, _GONE)
        elif fault.kind == "silent":
            self._begin_stream()
            with self.server.open_stream(self.connection):
                self._wait_for_the_client_to_go()
        elif fault.kind == "hang":
            self._wait_for_the_client_to_go()
        elif fault.kind == "status":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self._respond(fault.status, headers, fault.body)
        elif fault.kind == "delay":
            time.sleep(fault.seconds)
            self._relay(body)
        else:
            if fault.kind == "reset-after":
                self._ask(body)
            if fault.kind == "truncate":
                self._truncate(body)
            if fault.then is not None:
                fault.then()
            self._reset()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Over the connection of the last request, while it is fresh enough not to be closed by the server."""
        connection, self._kept = self._kept, None
        if connection is not None and time.monotonic() - self._kept_since > _KEEP_SECONDS:
            connection.close()
            connection = None
        connection = connection or _connect(self.server.upstream)
        answer = self._send(connection, body)
        content = answer.read()
        if answer.will_close:
            connection.close()
        else:
            self._kept, self._kept_since = connection, time.monotonic()
        return answer.status, dict(answer.getheaders()), content

    @contextmanager
    def _asked(self, body: bytes) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
        """A stream has a connection of its own."""
        connection = _connect(self.server.upstream)
        try:
            yield connection, self._send(connection, body)
        finally:
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, body: bytes) -> http.client.HTTPResponse:
        # The Host header stays the client's, for it is part of the signature.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse()

    def _wait_for_the_client_to_go(self) -> None:
        self.connection.recv(1)
        self.close_connection = True

    def _begin_stream(self) -> None:
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def _stream(self, body: bytes, fault: Fault | None) -> None:
        """A watch: each event is passed on when it comes, or as the fault has it."""
        with self._asked(body) as (connection, answer):
            if answer.status != 200:
                self._respond(answer.status, dict(answer.getheaders()), answer.read())
                return
            self._begin_stream()
            with self.server.open_stream(self.connection, connection.sock):
                if fault is None:
                    while events := answer.read1():
                        self._pass_on(events)
                else:
                    self._distort(answer, fault)
            self.wfile.write(b"0\r\n\r\n")

    def _distort(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        """Every second event is treated as the fault says."""
        for number, event in enumerate(iter(answer.readline, b"")):
            is_hit = number % 2 == 1
            if is_hit and fault.kind == "drop-events":
                continue
            if is_hit and fault.kind == "delay-events":
                time.sleep(fault.seconds)
            self._pass_on(event)
            if is_hit and fault.kind == "repeat-events":
                self._pass_on(event)

    def _pass_on(self, events: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(events), events))
        self.wfile.flush()

    def _relay(self, body: bytes) -> None:
        answer = self._ask(body)
        if self.command == "GET":
            self.server.remember(self.path, answer)
        self._respond(*answer)

    def _respond(self, status: int, headers: dict[str, str], body: bytes, send: int | None = None) -> None:
        self.send_response_only(status)
        skipped = (
            ("transfer-encoding", "connection")
            if self.command == "HEAD"
            else ("transfer-encoding", "connection", "content-length")
        )
        for name, value in headers.items():
            if name.lower() not in skipped:
                self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
        self.wfile.flush()

    def _truncate(self, body: bytes) -> None:
        status, headers, answer = self._ask(body)
        self._respond(status, headers, answer, send=len(answer) // 2)
        time.sleep(0.05)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
