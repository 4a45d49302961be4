"""Who has which address: pure arithmetic from a cluster's slot and a node's index.

Everything but the uplink lives in the cluster's own namespaces, so only the uplink's network can clash with
the host; it takes its third octet from the slot. Two clusters have two slots.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from e2e.cluster.errors import ClusterError

SLOTS = 64
MAX_NODES = 200
SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443
DNS_PORT = 1053


@dataclass(frozen=True)
class Addresses:
    """All addresses of one cluster."""

    slot: int

    @property
    def host(self) -> str:
        """The host's end of the uplink: where pods reach a server that runs on the host."""
        return f"10.254.{self.slot}.1"

    @property
    def api(self) -> str:
        """The cluster's end of the uplink: where kubectl and Helm reach the API server."""
        return f"10.254.{self.slot}.2"

    @property
    def uplink_network(self) -> str:
        return f"10.254.{self.slot}.0/30"

    @property
    def control_plane(self) -> str:
        """The control plane as the nodes see it; also their default gateway."""
        return f"10.255.{self.slot}.1"

    @property
    def node_network(self) -> str:
        return f"10.255.{self.slot}.0/24"

    def node(self, index: int) -> str:
        return f"10.255.{self.slot}.{_checked(index) + 10}"

    def pods(self, index: int) -> str:
        """The pod range of one node."""
        return f"10.244.{_checked(index)}.0/24"

    @property
    def host_link(self) -> str:
        """Name of the one device that appears on the host."""
        return f"ftop{self.slot}"


def _checked(index: int) -> int:
    if not 1 <= index <= MAX_NODES:
        raise ClusterError(f"node index {index} must be between 1 and {MAX_NODES}", "use fewer nodes")
    return index


def pick_slot(name: str, taken: Collection[int], host_networks: Iterable[str]) -> int:
    """A slot that follows from the name, or the next one that neither a cluster nor the host uses."""
    networks = [ipaddress.ip_network(text, strict=False) for text in host_networks]
    first = int(hashlib.sha256(name.encode()).hexdigest(), 16) % SLOTS
    for slot in ((first + step) % SLOTS for step in range(SLOTS)):
        uplink = ipaddress.ip_network(Addresses(slot).uplink_network)
        if slot not in taken and not any(uplink.overlaps(network) for network in networks):
            return slot
    raise ClusterError(
        f"no free network for cluster {name!r}: all of 10.254.0.0 - 10.254.{SLOTS - 1}.0 are in use",
        "take a cluster down (`down --name …`)",
    )


def next_index(taken: Collection[int]) -> int:
    """The lowest free node index."""
    return next(index for index in range(1, MAX_NODES + 2) if index not in taken)
