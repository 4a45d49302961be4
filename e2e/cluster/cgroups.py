"""A node's containers lie in a cgroup of the node's own: what is left of them can be seen and removed."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "finetune-operator"


def cgroup_of(cluster: str, node: str) -> str:
    """The cgroup path that kubelet gives to containerd as the parent of all containers."""
    return f"/{PREFIX}-{cluster}/{node}"


def _hierarchies() -> list[Path]:
    """The one tree of cgroup v2, or each controller's tree of v1 (without links such as cpu)."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def folders(path: str) -> list[Path]:
    """Existing folders of a cgroup."""
    return [folder for tree in _hierarchies() if (folder := tree / path.lstrip("/")).is_dir()]


def remove(path: str) -> None:
    """Remove a cgroup and all below it, as far as they are empty."""
    for top in folders(path):
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                Path(folder).rmdir()
            except OSError:
                continue


def cluster_cgroup(cluster: str) -> str:
    """The parent of all nodes' cgroups."""
    return f"/{PREFIX}-{cluster}"
