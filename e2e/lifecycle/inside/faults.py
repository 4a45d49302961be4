"""The faults that a rank can have: which, where and when is said in a file on the storage claim.

At the named step every rank of the named attempts stops and waits for the word to go on, so that whoever breaks
something from outside finds the gang where it is wanted. Then the named rank does to itself what the file says. A gang
that waits for the word goes on, too, when the file is written anew and names another step: to that one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from finetune_trainer.config import TrainConfig
from finetune_trainer.errors import DataError, NonFiniteError
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.signals import StopRequest
from finetune_trainer.watchdog import Watchdog

FOLDER = Path("/mnt/finetune/storage/faults")
STEP_SECONDS = 15.0
"""What a step may take before it counts as a hang; filling the memory of a pod takes seconds on a busy machine."""


def come_to(config: TrainConfig, rank: int, step: int, stop: StopRequest, watchdog: Watchdog) -> None:
    """Before a step: wait and break where that was asked for."""
    name = config.job.name
    plan = FOLDER / f"{name}.json"
    fault = _read(plan)
    if fault is None or config.attempt not in fault["attempts"] or step != fault["step"]:
        return
    watchdog.rest()
    (FOLDER / f"{name}.held-{rank}").touch()
    while not (FOLDER / f"{name}.go").exists():
        if stop.requested:
            return
        if _read(plan) != fault:
            break
        time.sleep(0.05)
    watchdog.enter(f"step {step + 1}", STEP_SECONDS)
    if rank == fault["rank"] and _read(plan) == fault:
        _break(fault["kind"], step)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        fault: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return fault


def _break(kind: str, step: int) -> None:
    if kind == "kill -9 of a worker":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "memory limit":
        held = []
        while True:
            held.append(os.urandom(1 << 20) * 8)
    elif kind == "exit 77":
        os._exit(ExitCode.OUT_OF_MEMORY)
    elif kind == "bad dataset row":
        raise DataError("spec.dataset", "row 7", "must have an answer", "add an assistant message")
    elif kind == "non-finite loss":
        raise NonFiniteError(f"the loss of step {step + 1} is nan")
    elif kind == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
