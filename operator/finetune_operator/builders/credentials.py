"""Credentials of object stores: environment variables that the kubelet fills from the user's Secrets.

Each role has a prefix of its own, so that checkpoints and results can lie in stores of different owners. Only names
pass through the operator; values are in no ConfigMap, no argument and no status.
"""

from __future__ import annotations

from typing import Any

from finetune_operator.api.locations import SecretReference
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.credentials import KEYS, TOKEN, Role, variable


def credentials(snapshot: Snapshot, *roles: Role) -> list[dict[str, Any]]:
    """Environment variables of a container that accesses the locations of ``roles``."""
    secrets: dict[Role, SecretReference | None] = {
        "checkpoint": snapshot.spec.checkpoint.secret_ref,
        "output": snapshot.spec.output.secret_ref if snapshot.spec.output else None,
    }
    return [entry for role in roles if (secret := secrets[role]) for entry in _entries(role, secret)]


def _entries(role: Role, secret: SecretReference) -> list[dict[str, Any]]:
    return [
        {
            "name": variable(role, key),
            "valueFrom": {
                "secretKeyRef": {"name": secret.name, "key": key, **({"optional": True} if key == TOKEN else {})}
            },
        }
        for key in (*KEYS, TOKEN)
    ]
