"""One rank, started by the launcher: runs the recipe and turns its end into an outcome and an exit code."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from finetune_trainer.config import TrainConfig
from finetune_trainer.config_file import load_train_config
from finetune_trainer.errors import PreemptedError
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.host_memory import take_picture
from finetune_trainer.messages import TrainTermination
from finetune_trainer.outcome import HANDOFF_ENV, Handoff, describe
from finetune_trainer.progress import take_stdout
from finetune_trainer.signals import StopRequest
from finetune_trainer.watchdog import Watchdog

LAUNCHER_PID_ENV = "FINETUNE_LAUNCHER_PID"
DUMP_SIGNAL = signal.SIGUSR1
"""Prints the stacks of all threads to stderr, whatever the interpreter is doing."""
_PR_SET_PDEATHSIG = 1


def run_worker(config_path: Path) -> int:
    """Run one rank to its end; never returns normally: see :func:`_leave`."""
    stop = StopRequest()
    stop.listen()
    _die_with_launcher()
    faulthandler.register(DUMP_SIGNAL)
    real_stdout = take_stdout()
    rank = int(os.environ["RANK"])
    handoff = Handoff(Path(os.environ.get(HANDOFF_ENV) or tempfile.mkdtemp()))

    def on_hang(text: str) -> None:
        known = handoff.read_known()
        hang = TrainTermination(
            outcome="Failed", cause="Hang", exit_code=ExitCode.HANG, rank=rank, step=known.step, message=text
        )
        handoff.write_outcome(rank, hang)

    watchdog = Watchdog(on_hang, lambda *change: handoff.record_watch(rank, *change))
    try:
        config = load_train_config(config_path)
        watchdog.enter("start", config.phase_limits.load)
        outcome = _run_recipe(config, stop, watchdog, handoff, real_stdout if rank == 0 else None)
    except Exception as error:
        traceback.print_exc()
        outcome = describe(error, rank)
        if outcome.exit_code == ExitCode.PEER_LOST and stop.requested:
            left = PreemptedError("stopped by SIGTERM; a peer left before the last step could be saved")
            outcome = describe(left, rank)
        if outcome.exit_code == ExitCode.OUT_OF_MEMORY:
            picture = take_picture(watchdog.phase, handoff.longest_tokens)
            outcome = outcome.model_copy(update={"memory": picture})
    handoff.write_outcome(rank, outcome)
    return _leave(outcome.exit_code)


def _run_recipe(
    config: TrainConfig, stop: StopRequest, watchdog: Watchdog, handoff: Handoff, out: object
) -> TrainTermination:
    # Here and not above: the imports take seconds, and SIGTERM must be heard meanwhile.
    from finetune_trainer.recipe import Recipe

    recipe = Recipe(config, stop, watchdog, handoff, out)  # type: ignore[arg-type]
    result = recipe.run()
    recipe.world.close()
    return TrainTermination(
        outcome="Succeeded",
        exit_code=ExitCode.OK,
        rank=recipe.world.rank,
        step=recipe.step,
        checkpoint=recipe.checkpoint,
        result=result,
    )


def _leave(exit_code: int) -> int:
    """End at once: tearing down a broken NCCL context may hang, and peers wait for our sockets to close."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _die_with_launcher() -> None:
    """Ask the kernel for SIGKILL when the launcher dies, so that no rank outlives its pod's first process."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = os.environ.get(LAUNCHER_PID_ENV)
    if launcher is not None and os.getppid() != int(launcher):
        os._exit(ExitCode.PEER_LOST)  # it died before we asked
