"""Looks for anything a cluster may have left on the host: `down` is done when this finds nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from e2e.cluster import cgroups, network
from e2e.cluster.paths import ClusterPaths
from e2e.cluster.state import State

CHECKED = "processes, network namespaces, links, mounts, packet filter rules, cgroups, files"


def left_over(state: State) -> list[str]:
    """Everything that is still there, in words."""
    root = str(ClusterPaths.of(state.name).root)
    machines = [state.control_plane, *(node.machine for node in state.nodes.values())]
    found = [f"process {p.pid}" for machine in machines for p in machine.processes if p.alive()]
    found += [f"network namespace {m.netns}" for m in machines if Path(f"/run/netns/{m.netns}").exists()]
    if Path(f"/sys/class/net/{state.addresses.host_link}").exists():
        found.append(f"link {state.addresses.host_link}")
    found += [f"mount {line.split()[4]}" for line in _mounts() if root in line]
    extra = network.filter_rules() - state.host_rules
    if extra > 0:
        found.append(f"{extra} packet filter rules of Kubernetes on the host")
    found += [f"cgroup {folder}" for folder in cgroups.folders(cgroups.cluster_cgroup(state.name))]
    if Path(root).exists():
        found.append(f"folder {root}")
    return found


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def processes_in(namespaces: Iterable[str]) -> list[str]:
    """Processes in named network namespaces: kubelet, containerd and shims all are.

    Ask before deleting the names, because a new namespace may get the number of a deleted one.
    """
    paths = (Path(f"/run/netns/{name}") for name in namespaces)
    inodes = {path.stat().st_ino for path in paths if path.exists()}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inode = entry.joinpath("ns/net").stat().st_ino
            command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if inode in inodes:
            found.append(f"process {entry.name}: {command[:100]}")
    return found
