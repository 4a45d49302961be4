"""A real etcd, kube-apiserver and kube-controller-manager on loopback ports: no root, no nodes.

The Job controller and the garbage collector are the real ones; what no node does here (binding and running pods) the
tests do with ``pod_status.py``, by writing the pod status that a kubelet would write. Tests of gangs start the real
scheduler as well and leave the rest to ``fake_kubelets.py``. Everything that is the kubelet's own behaviour is tested
in ``e2e/``, on real nodes.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from audit_log import AuditLog, audit_policy
from e2e.kubectl import Kubectl

TOKEN = "loopback-only-test-token"
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
"""Headers of a PATCH."""
OPERATOR, SECOND_OPERATOR = "operator", "second-operator"
"""Users whose writes are in the audit log."""
START_SECONDS = 60.0


def find_binaries() -> Path | None:
    """Folder with the programs of the control plane: KUBEBUILDER_ASSETS, the cache, or the PATH."""
    from e2e.cluster.binaries import bin_directory

    on_path = shutil.which("kube-apiserver")
    candidates = [os.environ.get("KUBEBUILDER_ASSETS"), bin_directory(), Path(on_path).parent if on_path else None]
    for candidate in candidates:
        if candidate is not None and all((Path(candidate) / name).exists() for name in PROGRAMS):
            return Path(candidate)
    return None


def required_binaries() -> Path:
    """The same for commands that are of no use without them; raises ``SystemExit`` that says how to get them."""
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no kube-apiserver: run `make binaries`, or set KUBEBUILDER_ASSETS")
    return binaries


PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
SCHEDULER = "kube-scheduler"

CLIENT_LIMITS = {"kube-api-qps": 500, "kube-api-burst": 1000}
"""Of controller-manager and scheduler: the defaults (20 and 30 a second; 50 and 100) make loopback wait for itself."""


@contextmanager
def serving(folder: Path, binaries: Path) -> Iterator[ApiServer]:
    """A control plane that knows our CRDs, for the duration of the block."""
    server = ApiServer(folder, binaries)
    server.start()
    try:
        kubectl = Kubectl(server.kubeconfig, binaries / "kubectl")
        kubectl.run("apply", "--server-side", "-f", str(Path(__file__).parents[1] / "crds"))
        kubectl.run("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        yield server
    finally:
        server.stop()


class ApiServer:
    """Started once per test run; ``kubeconfig`` is for clients."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder = folder
        self._binaries = binaries
        self._processes: list[subprocess.Popen[bytes]] = []
        self.kubeconfig = folder / "kubeconfig"
        self.operator_kubeconfig = folder / "operator.kubeconfig"
        self.audit_log = AuditLog(folder / "audit.log")
        self.port = 0
        self._etcd = ""

    def start(self) -> None:
        """Start all three and wait until the API server is ready."""
        client_port, peer_port, self.port = free_port(), free_port(), free_port()
        self._etcd = etcd = f"http://127.0.0.1:{client_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self._prepare_files()
        self._spawn(
            "etcd",
            {
                "data-dir": self._folder / "etcd",
                "listen-client-urls": etcd,
                "advertise-client-urls": etcd,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": f"default={peer}",
                "unsafe-no-fsync": "true",
                "log-level": "error",
            },
        )
        self.start_api()
        self._spawn(
            "kube-controller-manager",
            {
                **self._client_flags(),
                "service-account-private-key-file": self._folder / "sa.key",
                # pod GC, node lifecycle and the rest have nothing to do without nodes
                "controllers": "job-controller,garbage-collector-controller,namespace-controller,"
                "serviceaccount-controller,endpointslice-controller",
                "profiling": "false",
            },
        )

    def start_api(self) -> None:
        """The kube-apiserver alone, on what is in etcd."""
        self._api = self._spawn(
            "kube-apiserver",
            {
                "etcd-servers": self._etcd,
                "bind-address": "127.0.0.1",
                "advertise-address": "127.0.0.1",
                "secure-port": self.port,
                "cert-dir": self._folder / "certs",
                "token-auth-file": self._folder / "tokens.csv",
                "audit-policy-file": self._folder / "audit-policy.yaml",
                "audit-log-path": self.audit_log.path,
                "authorization-mode": "RBAC",
                "service-cluster-ip-range": "10.96.0.0/16",
                "service-account-issuer": "https://kubernetes.default.svc",
                "service-account-key-file": self._folder / "sa.key",
                "service-account-signing-key-file": self._folder / "sa.key",
                "endpoint-reconciler-type": "none",
            },
        )
        self._processes.insert(1, self._processes.pop())  # its clients are stopped before it, etcd after it
        self._wait_until_ready()

    def kill_api(self) -> None:
        """SIGKILL for the kube-apiserver alone; everybody else stays and has nobody to talk to."""
        self._processes.remove(self._api)
        self._api.kill()
        self._api.wait(timeout=10)

    def forget_in_etcd(self, key: str) -> None:
        """Remove an object where no watch of the kube-apiserver sees it: call it while that is down."""
        body = json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()
        request = urllib.request.Request(f"{self._etcd}/v3/kv/deleterange", data=body, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            if json.load(answer).get("deleted") != "1":
                raise RuntimeError(f"etcd has no {key}")

    def _client_flags(self) -> dict[str, object]:
        """What the controller-manager and the scheduler are told alike."""
        return {
            "kubeconfig": self.kubeconfig,
            "authentication-kubeconfig": self.kubeconfig,
            "authorization-kubeconfig": self.kubeconfig,
            "bind-address": "127.0.0.1",
            "secure-port": free_port(),
            "cert-dir": self._folder / "certs",
            "leader-elect": "false",
            **CLIENT_LIMITS,
        }

    @contextmanager
    def scheduling(self) -> Iterator[None]:
        """The real scheduler runs during the block; it binds what finds room on the nodes that there are."""
        scheduler = self._spawn(
            SCHEDULER,
            {
                **self._client_flags(),
            },
        )
        try:
            yield
        finally:
            self._processes.remove(scheduler)
            end_process(scheduler)

    def stop(self) -> None:
        """Stop all, the newest first."""
        for process in reversed(self._processes):
            end_process(process)
        self._processes.clear()

    def _prepare_files(self) -> None:
        users = ("admin", OPERATOR, SECOND_OPERATOR)
        lines = (f'{token_of(user)},{user},{user},"system:masters"\n' for user in users)
        (self._folder / "tokens.csv").write_text("".join(lines))
        policy = audit_policy([OPERATOR, SECOND_OPERATOR])
        (self._folder / "audit-policy.yaml").write_text(yaml.safe_dump(policy))
        subprocess.run(
            ["openssl", "genrsa", "-out", str(self._folder / "sa.key"), "2048"],
            check=True,
            timeout=30,
            capture_output=True,
        )
        self.write_kubeconfig(self.kubeconfig)
        self.write_kubeconfig(self.operator_kubeconfig, user=OPERATOR)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    def session(self) -> aiohttp.ClientSession:
        """A client with all rights and as many connections as it likes."""
        return aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {TOKEN}"},
            connector=aiohttp.TCPConnector(ssl=False, limit=0),
            timeout=aiohttp.ClientTimeout(total=60),
            read_bufsize=2**21,
        )

    def write_kubeconfig(self, path: Path, *, user: str = "admin", server: str = "") -> None:
        """A kubeconfig for a user; ``server`` may be a proxy."""
        config: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": server or self.url, "insecure-skip-tls-verify": True},
                }
            ],
            "users": [{"name": user, "user": {"token": token_of(user)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }
        path.write_text(yaml.safe_dump(config))

    def _spawn(self, program: str, flags: dict[str, object]) -> subprocess.Popen[bytes]:
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        command = [str(self._binaries / program), *arguments]
        with (self._folder / f"{program}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._processes.append(process)
        return process

    def _wait_until_ready(self) -> None:
        context = ssl._create_unverified_context()
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}/readyz", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                with urllib.request.urlopen(request, timeout=2, context=context):
                    return
            except (urllib.error.URLError, OSError, json.JSONDecodeError):
                time.sleep(0.1)
        tail = (self._folder / "kube-apiserver.log").read_text()[-3000:]
        self.stop()
        raise RuntimeError(f"kube-apiserver did not become ready within {START_SECONDS:.0f} s:\n{tail}")


def token_of(user: str) -> str:
    """The bearer token of a user."""
    return TOKEN if user == "admin" else f"{TOKEN}-{user}"


def end_process(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
