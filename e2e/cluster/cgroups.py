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


def create(path: str) -> None:
    """Make a cgroup that a kubelet accepts as its root: in every tree, and on v2 with the controllers passed on."""
    for tree in _hierarchies():
        folder = tree
        for part in Path(path.lstrip("/")).parts:
            _pass_controllers_on(folder)
            folder = folder / part
            folder.mkdir(exist_ok=True)
            _copy_cpuset(folder)
        _pass_controllers_on(folder)


def _pass_controllers_on(folder: Path) -> None:
    """cgroup v2 gives a child only the controllers that its parent passes on."""
    control = folder / "cgroup.subtree_control"
    if control.exists():
        for controller in (folder / "cgroup.controllers").read_text().split():
            try:
                control.write_text(f"+{controller}")
            except OSError:
                continue


def _copy_cpuset(folder: Path) -> None:
    """A new cpuset of cgroup v1 holds no processor and no memory node, and so no process, until told."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        own = folder / file
        if folder.is_relative_to(ROOT / "cpuset") and own.exists() and not own.read_text().strip():
            own.write_text((folder.parent / file).read_text())


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
