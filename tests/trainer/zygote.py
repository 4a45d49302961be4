"""A process that has imported everything and forks launchers, so that a launch costs a tenth of a second and not ten.

What is forked is the real launcher, which forks real workers: processes, signals, sockets and exit codes are those
of a pod. Only ``exec`` is left out, and with it the imports.

Protocol, over a Unix socket: one JSON line ``{"env": {…}, "stdout": path, "stderr": path}`` starts a launcher and is
answered with its process id; when it has ended, its return code (as in ``subprocess``) follows on the same connection.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

READY = "ready"
PROBE_ENV = "TRAINER_TESTS_PROBE"
"""``module:function`` that every forked worker calls before it becomes a rank; see ``probes.py``."""


class Zygote:
    """The tests' side: starts the process, asks it for launchers."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zygote-")
        self._address = str(Path(self._folder.name) / "socket")
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer.zygote", self._address],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": f"{root / 'trainer_image'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
            | {"TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._process.stdout is not None
        # Libraries print while they are imported.
        assert any(line.strip() == READY for line in self._process.stdout), "the zygote could not start"

    def launch(self, env: dict[str, str], stdout: Path, stderr: Path) -> ForkedProcess:
        """A launcher in the environment ``env``."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        request = {"env": env, "stdout": str(stdout), "stderr": str(stderr)}
        connection.sendall(json.dumps(request).encode() + b"\n")
        return ForkedProcess(connection)

    def close(self) -> None:
        """End it, and with it whatever it has forked and is still alive."""
        self._process.terminate()
        self._process.wait(10)
        self._folder.cleanup()


class ForkedProcess:
    """What the tests need of ``subprocess.Popen``, for a process that is somebody else's child."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        return self._read(0.0)

    def wait(self, timeout: float) -> int:
        """Wait for the end."""
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("launcher", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """As ``subprocess.Popen`` has it."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read(self, seconds: float) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if selector.select(seconds):
                    self.returncode = int(self._lines.readline())
                    self._connection.close()
        return self.returncode


class _ForkedWorker:
    """Stands in for ``subprocess.Popen`` inside a forked launcher."""

    def __init__(self, _command: list[str], env: dict[str, str], **_options: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _become(env)
            import torch

            from finetune_trainer.worker import run_worker

            torch.set_num_threads(1)  # torch replaces its pool at the first use after a fork, and not thread-safely
            if probe := env.get(PROBE_ENV):
                module, _, function = probe.partition(":")
                getattr(importlib.import_module(module), function)()

            os._exit(run_worker(Path(env["FINETUNE_CONFIG"])))


def _become(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


def _run_launcher(request: dict[str, Any]) -> None:
    for path, descriptor in ((request["stdout"], 1), (request["stderr"], 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    _become(request["env"])
    from finetune_trainer import launcher

    fork_instead = SimpleNamespace(Popen=_ForkedWorker, DEVNULL=subprocess.DEVNULL)
    vars(launcher)["subprocess"] = fork_instead
    code = launcher.launch(Path(os.environ["FINETUNE_CONFIG"]), Path(os.environ["FINETUNE_TERMINATION_LOG"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _preload() -> None:
    """What every rank imports sooner or later."""
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import finetune_trainer.recipe
    import finetune_trainer.strategies.fsdp
    import finetune_trainer.strategies.zero  # noqa: F401


def serve(address: str) -> None:
    """Fork on request until SIGTERM; one thread, because what is forked from several may deadlock."""
    _preload()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)
    children: dict[int, socket.socket] = {}
    print(READY, flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            time.sleep(0.01)
        else:
            connection.setblocking(True)
            request = json.loads(connection.makefile("r").readline())
            pid = os.fork()
            if pid == 0:
                listener.close()
                for other in [*children.values(), connection]:
                    other.close()
                _run_launcher(request)
            children[pid] = connection
            connection.sendall(f"{pid}\n".encode())
        _report_ends(children)


def _report_ends(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if (connection := children.pop(pid, None)) is not None:
            with suppress(OSError):  # the test may have gone already
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
