"""An HTTP proxy on loopback that breaks requests on demand: what networks and busy servers do to a client."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

Kind = Literal["status", "delay", "reset-before", "reset-after", "truncate", "silent"]


@dataclass(frozen=True)
class Fault:
    """What happens to one request."""

    kind: Kind
    """``status``: answered without asking the server. ``delay``: passed on late. ``reset-before``: the connection
    breaks and the server never hears of it. ``reset-after``: the server did it, but its answer is lost.
    ``truncate``: the connection breaks in the middle of the answer's body. ``silent``: the answer begins, and nothing
    follows."""
    status: int = 503
    seconds: float = 0.0
    body: bytes = b"injected"
    """Of an answer that is not the server's."""

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

    def take(self, path: str) -> Fault | None:
        """The fault for a request, if it is its turn."""
        with self._lock:
            self._count += 1
            fault = self._choose(self._count) if self._choose is not None else self._choose_by_path(path)
            if self._next:
                fault = self._next.pop(0)
            self.injected += fault is not None
            return fault

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

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.take(self.path)
        if fault is None and "watch=true" in self.path:
            self._stream(body)
        elif fault is None:
            self._relay(body)
        elif fault.kind == "silent":
            self._begin_stream()
            self.connection.recv(1)  # until the client goes
            self.close_connection = True
        elif fault.kind == "status":
            self._respond(fault.status, {}, fault.body)
        elif fault.kind == "delay":
            time.sleep(fault.seconds)
            self._relay(body)
        else:
            if fault.kind == "reset-after":
                self._ask(body)
            if fault.kind == "truncate":
                self._truncate(body)
            self._reset()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self._asked(body) as answer:
            return answer.status, dict(answer.getheaders()), answer.read()

    @contextmanager
    def _asked(self, body: bytes) -> Iterator[http.client.HTTPResponse]:
        connection = _connect(self.server.upstream)
        try:
            # The Host header stays the client's, for it is part of the signature.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            yield connection.getresponse()
        finally:
            connection.close()

    def _begin_stream(self) -> None:
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def _stream(self, body: bytes) -> None:
        """A watch: each event is passed on when it comes."""
        with self._asked(body) as answer:
            if answer.status != 200:
                self._respond(answer.status, dict(answer.getheaders()), answer.read())
                return
            self._begin_stream()
            while events := answer.read1():
                self.wfile.write(b"%x\r\n%b\r\n" % (len(events), events))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    def _relay(self, body: bytes) -> None:
        self._respond(*self._ask(body))

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
