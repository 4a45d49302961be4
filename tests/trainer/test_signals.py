"""SIGTERM is noted wherever it arrives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trainer.tiny import PYTHON_PATH

pytestmark = pytest.mark.unit

BLOCKED_WRITE = """
import os, signal, sys, threading, time
from finetune_trainer.signals import StopRequest

stop = StopRequest()
stop.listen()
reading, writing = os.pipe()
os.dup2(writing, 2)

def interrupt_then_drain():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    while os.read(reading, 100_000):
        pass

threading.Thread(target=interrupt_then_drain, daemon=True).start()
sys.stderr.write("x" * 200_000)
sys.stderr.flush()
assert stop.requested
"""


def test_a_signal_during_a_write_to_stderr_is_harmless() -> None:
    """The log's reader is slow, so the write is interrupted; a buffered file cannot be entered twice."""
    script = [sys.executable, "-c", "import sys\ntry:\n" + _indent(BLOCKED_WRITE) + _REPORT]
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout) == (0, "")


_REPORT = "except BaseException as error:\n    print(repr(error))\n    raise\n"


def _indent(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())
