"""The operator as a process, for tests that start, stop and kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from apiserver import free_port
from cpu_time import cpu_seconds_of

ROOT = Path(__file__).parents[1]


class OperatorProcess:
    """``python -m finetune_operator``."""

    def __init__(
        self, kubeconfig: Path, log: Path, settings: Mapping[str, str] | None = None, *, namespace: str = ""
    ) -> None:
        """One for all namespaces, or for one only.

        ``settings`` are environment variables without their prefix: ``{"RESYNC_SECONDS": "1"}``.
        """
        self._kubeconfig = kubeconfig
        own = {"NAMESPACES": namespace, **(settings or {})}
        self._settings = {f"FINETUNE_OPERATOR_{name}": value for name, value in own.items()}
        self._ports = {"PROBE": 0, "METRICS": 0}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the second call replaces a process that was killed."""
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")])
        self._ports = {name: free_port() for name in self._ports}
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "PYTHONPATH": path,
            **{f"FINETUNE_OPERATOR_{name}_PORT": str(port) for name, port in self._ports.items()},
            **self._settings,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"], env=environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL: no chance to finish anything."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)
        self._process = None

    def stop(self) -> None:
        """SIGTERM, as a rollout does."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)
        self._process = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def health(self) -> int:
        """Status of ``/healthz``; 0: nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['PROBE']}/healthz", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self) -> dict[str, float]:
        """Samples of ``/metrics`` by name and labels as they are written there; empty: nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['METRICS']}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return {}
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def resident_mebibytes(self) -> float:
        """Resident set of the process."""
        return self._memory("VmRSS")

    def peak_mebibytes(self) -> float:
        """The most that was ever resident."""
        return self._memory("VmHWM")

    def cpu_seconds(self) -> float:
        """CPU time of the process, of the user and of the kernel."""
        return cpu_seconds_of(self.pid)

    def _memory(self, field: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) / 1024
