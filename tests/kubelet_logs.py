"""The part of a kubelet that serves the logs of its pods, for an API server without nodes."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType


class KubeletLogs:
    """Answers every request for a log with what ``log`` says right then, from ``with`` to its end."""

    def __init__(self, folder: Path, log: Callable[[], str]) -> None:
        """``folder`` is for a certificate: kubelets speak TLS only, and the API server trusts any of them here."""
        self.reads = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(log))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*_certificate(folder))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port

    def __enter__(self) -> KubeletLogs:
        threading.Thread(target=self._server.serve_forever, name="kubelet logs", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self, log: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
        logs = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_log = self.path.startswith("/containerLogs/")
                logs.reads += is_log
                body = log().encode() if is_log else b""
                self.send_response(200 if is_log else 404)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *values: object) -> None:
                """Nothing: requests are counted."""

        return Handler


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "kubelet.crt", folder / "kubelet.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kubelet", "-days", "1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*request, *files], check=True, timeout=30, capture_output=True)
    return certificate, key
