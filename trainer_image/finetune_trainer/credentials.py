"""How credentials of object stores reach a pod: environment variables under a prefix per role.

The operator names them, the kubelet fills them from the user's Secret, the trainer reads them. So checkpoints and
results may lie in stores of different owners. Part of the contract: imports nothing.
"""

from __future__ import annotations

from typing import Literal

Role = Literal["checkpoint", "output"]

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""What the Secret must have."""
TOKEN = "AWS_SESSION_TOKEN"
"""What it has besides for temporary credentials."""


def variable(role: Role, key: str) -> str:
    """The environment variable that holds a key of the Secret of ``spec.<role>.secretRef``."""
    return f"FINETUNE_{role.upper()}_{key}"
