"""Where things lie: a cache that survives clusters, and one folder per cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def cache_root() -> Path:
    """Binaries and images; shared by all checkouts of this user, keyed by version or content."""
    override = os.environ.get("FINETUNE_OPERATOR_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "finetune-operator"


def state_root() -> Path:
    """Folders of running clusters. Not below /run or /var/log: each node has its own of those."""
    return Path(os.environ.get("FINETUNE_OPERATOR_STATE", "/var/lib/finetune-operator"))


@dataclass(frozen=True)
class ClusterPaths:
    """The files of one cluster."""

    root: Path

    @classmethod
    def of(cls, name: str) -> ClusterPaths:
        return cls(state_root() / "clusters" / name)

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def control_plane(self) -> Path:
        return self.root / "control-plane"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def trash(self) -> Path:
        """Files of nodes that are gone."""
        return self.root / "trash"

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    def containerd_socket(self, node: str) -> Path:
        return self.node(node) / "containerd.sock"
