"""The cluster's network: one namespace for the control plane, which is the router, and one for each node.

    host ── veth ── control plane ── bridge ── veth ── node-1 ── veth ── pods of node-1
                                        └───── veth ── node-2 ── ...

Each node hangs on a link of its own, so that cutting it silences the node as a lost machine is silent: no FIN,
no RST, no ICMP error reaches a peer.
"""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cluster.addresses import Addresses
from e2e.cluster.shell import run, succeeds

BRIDGE = "nodes"
UPLINK = "uplink"


def _ip(*words: str, netns: str = "") -> str:
    return run(["ip", *(["-n", netns] if netns else []), *words], timeout=20)


def _sysctl(netns: str, settings: dict[str, str]) -> None:
    """Set values of a namespace; the files show the namespace of the process that opens them."""
    script = "".join(f"echo {value} >/proc/sys/net/ipv4/{name}\n" for name, value in settings.items())
    run(["nsenter", f"--net=/run/netns/{netns}", "sh", "-e"], timeout=20, stdin=script)


def _router(netns: str) -> None:
    _ip("netns", "add", netns)
    _ip("link", "set", "lo", "up", netns=netns)
    # Redirects would tell nodes of a shorter way that a cut link does not close.
    quiet = {f"conf/{who}/{what}": "0" for who in ("all", "default") for what in ("send_redirects", "rp_filter")}
    _sysctl(netns, {"ip_forward": "1", **quiet})


def host_networks() -> list[str]:
    """Networks the host has a route to, other than the default route."""
    routes = json.loads(_ip("-j", "route", "show", "table", "all") or "[]")
    return [r["dst"] for r in routes if r.get("dst", "default") != "default" and ":" not in r["dst"]]


def create_control_plane(netns: str, addresses: Addresses) -> None:
    """The router's namespace, with the one link that leads out to the host."""
    _router(netns)
    link = addresses.host_link
    _ip("link", "add", link, "type", "veth", "peer", "name", UPLINK, "netns", netns)
    _ip("addr", "add", f"{addresses.host}/30", "dev", link)
    _ip("link", "set", link, "up")
    _ip("addr", "add", f"{addresses.api}/30", "dev", UPLINK, netns=netns)
    _ip("link", "set", UPLINK, "up", netns=netns)
    # No default route: a pod that asks for the internet hears "unreachable" at once instead of waiting.
    _ip("link", "add", BRIDGE, "type", "bridge", netns=netns)
    _ip("addr", "add", f"{addresses.control_plane}/24", "dev", BRIDGE, netns=netns)
    _ip("link", "set", BRIDGE, "up", netns=netns)
    # Pods that talk to the host do so under the uplink's address: the host knows no route to pods.
    masquerade = ["-t", "nat", "-A", "POSTROUTING", "-o", UPLINK, "-j", "MASQUERADE"]
    run(["nsenter", f"--net=/run/netns/{netns}", "iptables", "-w", *masquerade], timeout=20)


def port(index: int) -> str:
    """Name of a node's port on the bridge."""
    return f"node{index}"


def create_node(control_plane: str, netns: str, addresses: Addresses, index: int) -> None:
    """A node's namespace, its link, and the router's way to its pods (which also undoes a blackhole)."""
    _router(netns)
    _ip(
        "link",
        "add",
        port(index),
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        netns,
        netns=control_plane,
    )
    _ip("link", "set", port(index), "master", BRIDGE, "up", netns=control_plane)
    _ip("addr", "add", f"{addresses.node(index)}/24", "dev", "eth0", netns=netns)
    _ip("link", "set", "eth0", "up", netns=netns)
    _ip("route", "add", "default", "via", addresses.control_plane, netns=netns)
    if _is_blackhole(control_plane, addresses.pods(index)):
        _ip("route", "del", "blackhole", addresses.pods(index), netns=control_plane)
    way = ["via", addresses.node(index), "dev", BRIDGE]
    _ip("route", "replace", addresses.pods(index), *way, netns=control_plane)


def remove_port(control_plane: str, index: int) -> None:
    """A node's end of its link goes with it; the kernel does so by itself, but in its own time."""
    if Path(f"/run/netns/{control_plane}").exists():
        succeeds(["ip", "-n", control_plane, "link", "del", port(index)])


def _is_blackhole(netns: str, network: str) -> bool:
    routes = json.loads(_ip("-j", "route", "show", "type", "blackhole", netns=netns) or "[]")
    return any(route.get("dst") == network for route in routes)


def cut(control_plane: str, addresses: Addresses, index: int) -> None:
    """Silence a node: its link goes down, and packets to its pods vanish instead of being refused."""
    _ip("link", "set", port(index), "down", netns=control_plane)
    _ip("route", "del", addresses.pods(index), netns=control_plane)
    _ip("route", "add", "blackhole", addresses.pods(index), netns=control_plane)


def remove_host_link(addresses: Addresses) -> None:
    """The host's end of the uplink; it also goes when the control plane's namespace does."""
    if Path(f"/sys/class/net/{addresses.host_link}").exists():
        succeeds(["ip", "link", "del", addresses.host_link])


def filter_rules() -> int:
    """How many of Kubernetes' packet filter rules the host has (it may run a Kubernetes of its own)."""
    return run(["iptables-save"], timeout=20).count("KUBE-") if succeeds(["iptables-save"]) else 0
