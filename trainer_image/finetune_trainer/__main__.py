"""Entry points: ``launch`` (a train pod), ``work`` (one rank, started by the launcher), ``prepare``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the subcommand; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="finetune_trainer", description=__doc__, allow_abbrev=False)
    parser.add_argument("command", choices=sorted(_COMMANDS))
    return _COMMANDS[parser.parse_args(arguments).command]()


def config_path() -> Path:
    """The mounted ConfigMap, or what ``FINETUNE_CONFIG`` names."""
    from finetune_trainer.config import CONFIG_PATH

    return Path(os.environ.get("FINETUNE_CONFIG", CONFIG_PATH))


def termination_log_path() -> Path:
    """Where the kubelet reads the pod's last word, or what ``FINETUNE_TERMINATION_LOG`` names."""
    from finetune_trainer.config import TERMINATION_LOG_PATH

    return Path(os.environ.get("FINETUNE_TERMINATION_LOG", TERMINATION_LOG_PATH))


def _hold_sigterm() -> None:
    """Keep SIGTERM until somebody listens: the kernel forgets it where process 1 has no handler yet."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _launch() -> int:
    _hold_sigterm()
    from finetune_trainer.launcher import launch

    return launch(config_path(), termination_log_path())


def _work() -> int:
    _hold_sigterm()
    from finetune_trainer.worker import run_worker

    return run_worker(config_path())


def _prepare() -> int:
    from finetune_trainer.prepare.__main__ import main as prepare

    return prepare()


_COMMANDS: dict[str, Callable[[], int]] = {"launch": _launch, "work": _work, "prepare": _prepare}

if __name__ == "__main__":
    sys.exit(main())
