"""``python -m finetune_trainer.prepare``: the prepare pod. Its environment is read here and in ``hub.py``.

FINETUNE_CONFIG           the PrepareConfig (default /etc/finetune/config.json)
FINETUNE_TERMINATION_LOG  where the last word goes (default /dev/termination-log)
FINETUNE_MOUNT_ROOT       below which volumes are mounted (default /mnt/finetune)
HF_ENDPOINT, HF_TOKEN     the hub and the credential for it
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from finetune_trainer.config import CONFIG_PATH, MOUNT_ROOT, TERMINATION_LOG_PATH
from finetune_trainer.config_file import load_prepare_config
from finetune_trainer.errors import ConfigError
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import PrepareTermination
from finetune_trainer.prepare.stage import run_prepare, write_termination


def main() -> int:
    """Read the configuration and run the stage; the exit code."""
    config_path = Path(os.environ.get("FINETUNE_CONFIG", CONFIG_PATH))
    termination_path = Path(os.environ.get("FINETUNE_TERMINATION_LOG", TERMINATION_LOG_PATH))
    try:
        config = load_prepare_config(config_path)
    except ConfigError as error:
        message = f"the configuration cannot be used: {error}"
        print(message, file=sys.stderr)
        termination = PrepareTermination(outcome="Failed", cause="Config", message=message, fault=error.fault)
        write_termination(termination, termination_path)
        return ExitCode.CONFIG
    return run_prepare(config, termination_path, Path(os.environ.get("FINETUNE_MOUNT_ROOT", MOUNT_ROOT)))


if __name__ == "__main__":
    sys.exit(main())
