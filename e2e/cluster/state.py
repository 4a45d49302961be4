"""What is known about a cluster, on disk before each thing is made, so that `down` can undo any failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from e2e.cluster.addresses import Addresses
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import ClusterPaths, state_root
from e2e.cluster.shell import write_atomic

FORMAT = 1


@dataclass
class Process:
    """A process we started; the start time tells it from a later one with the same number."""

    pid: int
    started: int
    """Clock ticks since boot (field 22 of /proc/PID/stat)."""

    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When a process was started, or None when there is no such process (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass
class Machine:
    """The control plane or a node: a network namespace, and a first process whose end ends all others."""

    netns: str
    processes: list[Process] = field(default_factory=list)

    def alive(self) -> bool:
        return bool(self.processes) and all(process.alive() for process in self.processes)


@dataclass
class Node:
    """One node of the cluster."""

    index: int
    gpus: int
    machine: Machine
    killed: bool = False
    images: dict[str, str] = field(default_factory=dict)
    """Image names of an archive -> key of the content that this node has loaded."""


@dataclass
class State:
    """One cluster."""

    name: str
    slot: int
    control_plane: Machine
    gpus: int = 0
    nodes: dict[str, Node] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    """Image names of an archive -> the cluster's own link to it; a node added later gets them too."""
    host_rules: int = 0
    """Number of Kubernetes' packet filter rules on the host before the cluster: `down` compares."""
    format: int = FORMAT

    @property
    def addresses(self) -> Addresses:
        return Addresses(self.slot)

    def live_nodes(self) -> Iterator[tuple[str, Node]]:
        return ((name, node) for name, node in self.nodes.items() if not node.killed)

    def save(self) -> None:
        write_atomic(ClusterPaths.of(self.name).state, json.dumps(asdict(self), indent=2) + "\n")


def _machine(data: dict[str, object]) -> Machine:
    processes = data["processes"]
    assert isinstance(processes, list)
    return Machine(str(data["netns"]), [Process(**process) for process in processes])


def load(name: str) -> State | None:
    """Read a cluster's state; None when there is no such cluster."""
    path = ClusterPaths.of(name).state
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    if data.get("format") != FORMAT:
        raise ClusterError(
            f"{path}: format {data.get('format')} is not {FORMAT}",
            f"`down --name {name}` with the version that made it",
        )
    data["control_plane"] = _machine(data["control_plane"])
    data["nodes"] = {
        node: Node(**{**fields, "machine": _machine(fields["machine"])}) for node, fields in data["nodes"].items()
    }
    return State(**data)


def require(name: str) -> State:
    """Read the state of a cluster that must exist."""
    state = load(name)
    if state is None:
        raise ClusterError(f"there is no cluster {name!r}", f"python -m e2e.cluster up --name {name}")
    return state


def cluster_names() -> list[str]:
    folder = state_root() / "clusters"
    return sorted(path.parent.name for path in folder.glob("*/state.json"))


def slots_in_use() -> dict[str, int]:
    return {name: state.slot for name in cluster_names() if (state := load(name)) is not None}
