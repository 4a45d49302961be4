"""The ConfigMap that fixes what a run was accepted with."""

from __future__ import annotations

from typing import Any

from finetune_operator.builders.metadata import Owner, child_labels, config_map
from finetune_operator.builders.names import snapshot_name
from finetune_operator.core.snapshot import Snapshot

SNAPSHOT_KEY = "snapshot.json"


def build_snapshot(owner: Owner, snapshot: Snapshot) -> dict[str, Any]:
    """The manifest."""
    labels = child_labels(owner, stage="run", run=snapshot.digest)
    return config_map(owner, snapshot_name(owner.name), labels, {SNAPSHOT_KEY: snapshot.to_json()})
