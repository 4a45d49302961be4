"""The operator as a process, for tests that start, stop and kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from apiserver import free_port

ROOT = Path(__file__).parents[1]


class OperatorProcess:
    """``python -m finetune_operator``."""

    def __init__(self, kubeconfig: Path, log: Path, *, namespace: str = "") -> None:
        """``namespace`` is the only one that it works in; none: all of them."""
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the second call replaces a process that was killed."""
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")])
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "PYTHONPATH": path,
            "FINETUNE_OPERATOR_PROBE_PORT": str(free_port()),
            "FINETUNE_OPERATOR_NAMESPACES": self._namespace,
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

    def resident_mebibytes(self) -> float:
        """Resident set of the process."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024
