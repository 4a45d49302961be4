"""Making one node: its files, its machine, its images, its GPUs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from e2e.cluster import cgroups, config, machine, network, pki
from e2e.cluster.addresses import API_PORT, Addresses
from e2e.cluster.api import Api, is_ready
from e2e.cluster.archive import content_key, image_names
from e2e.cluster.components import node_programs
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import ClusterPaths
from e2e.cluster.shell import run, wait_for, write_atomic
from e2e.cluster.slim import import_slim
from e2e.cluster.state import Machine, Node, State

IMPORT_TIMEOUT = 600


def program_environment(binaries: Path) -> dict[str, str]:
    """What programs see: our binaries first, nothing of the caller's proxies or Kubernetes settings."""
    return {
        "PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
    }


def prepare_files(paths: ClusterPaths, name: str, index: int, addresses: Addresses, cluster: str) -> None:
    """Write a fresh node's configuration; whatever an earlier node of the name left is removed."""
    folder, ip = paths.node(name), addresses.node(index)
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("cni", "ipam", "kubelet", "pods", "opt", "containerd"):
        (folder / part).mkdir(parents=True)
    pki.make_node_certificates(paths.pki, folder, name, ip)
    server = f"https://{addresses.control_plane}:{API_PORT}"
    users = {"kubelet": folder / "kubelet", "kube-proxy": paths.pki / "proxy"}
    for user, credentials in users.items():
        text = config.kubeconfig(server, user, paths.pki, credentials, cluster)
        write_atomic(folder / f"{user}.kubeconfig", text, 0o600)
    cgroup = cgroups.cgroup_of(cluster, name)
    documents: dict[str, object] = {
        "kubelet.json": config.kubelet_config(ip, folder, paths.pki, cgroup),
        "kube-proxy.json": config.kube_proxy_config(folder / "kube-proxy.kubeconfig", name, ip),
        "cni/10-pods.conflist": config.cni_config(folder, addresses.pods(index)),
    }
    for file, document in documents.items():
        write_atomic(folder / file, json.dumps(document, indent=2) + "\n")
    write_atomic(folder / "containerd.toml", config.containerd_config(folder))
    write_atomic(folder / "resolv.conf", "")


def start(state: State, name: str, index: int, gpus: int, binaries: Path) -> None:
    """Create a node's namespace and start its programs; state is saved before what must be undone."""
    paths = ClusterPaths.of(state.name)
    netns = f"{state.control_plane.netns}-{name}"
    state.nodes[name] = Node(index, gpus, Machine(netns))
    state.save()
    prepare_files(paths, name, index, state.addresses, state.name)
    network.create_node(state.control_plane.netns, netns, state.addresses, index)
    cgroups.create(cgroups.cgroup_of(state.name, name))
    programs = node_programs(paths.node(name), name, state.addresses.node(index))
    machine.start(state.nodes[name].machine, paths.node(name), programs, program_environment(binaries))
    state.save()


def wait_ready(state: State, name: str, api: Api, since: str | None = None) -> None:
    """Wait until the node reports Ready, with a heartbeat other than that of a former node of the name."""
    folder = ClusterPaths.of(state.name).node(name)

    def probe() -> bool:
        check_machine(state.nodes[name].machine, folder)
        found = api.nodes().get(name)
        return found is not None and is_ready(found) and heartbeat(found) != since

    wait_for(f"node {name} to be Ready", probe, timeout=90, every=0.3)


class MachineCrashed(Exception):
    """Ends a wait at once; turned into a ClusterError by the caller."""


def check_machine(there: Machine, folder: Path) -> None:
    """Fail early, with the log, when a program cannot run."""
    report = machine.crashed(folder)
    if report:
        raise MachineCrashed(report)
    if not there.alive():
        raise MachineCrashed(f"machine {there.netns} has ended; see {folder / 'logs' / 'init.log'}")


def heartbeat(node: Mapping[str, object]) -> str | None:
    """When the kubelet last confirmed the node's Ready condition."""
    status = node.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return next((c["lastHeartbeatTime"] for c in conditions if c["type"] == "Ready"), None)


def set_gpus(api: Api, name: str, count: int) -> None:
    """Give the node GPUs that only the scheduler believes in."""
    patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(count)}]
    api.request("PATCH", f"/api/v1/nodes/{name}/status", patch, "application/json-patch+json")


def gpus_allocatable(api: Api, name: str) -> int:
    found = api.nodes().get(name, {})
    return int(found.get("status", {}).get("allocatable", {}).get(config.GPU_RESOURCE, "0"))


def load_image(state: State, name: str, archive: Path) -> bool:
    """Import an archive into a node's containerd; False when the node has this content already."""
    key = content_key(archive)
    node = state.nodes[name]
    names = " ".join(image_names(archive))
    if node.images.get(names) == key:
        return False
    socket = ClusterPaths.of(state.name).containerd_socket(name)
    ctr = ["ctr", "--address", str(socket), "--namespace", "k8s.io"]
    present = set(run([*ctr, "content", "list", "--quiet"], timeout=60).split())
    if not import_slim(ctr, archive, present, IMPORT_TIMEOUT):
        run([*ctr, "images", "import", archive], timeout=IMPORT_TIMEOUT)
    digests = _digests(run([*ctr, "images", "list"], timeout=60))
    for image in names.split():
        digest = digests.get(image)
        if digest is None:
            raise ClusterError(f"{archive}: node {name} does not know image {image} after the import")
        # So that a pod may also name the image by digest, as runtimes do.
        by_digest = f"{image.rpartition(':')[0]}@{digest}"
        run([*ctr, "images", "tag", "--force", image, by_digest], timeout=60)
    node.images[names] = key
    return True


def _digests(listing: str) -> dict[str, str]:
    rows = (line.split() for line in listing.splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) > 2}


def remove(state: State, name: str) -> None:
    """Kill a node's machine and remove what it had on the host.

    Its files are only set aside: deleting unpacked images takes a minute, and `down` deletes all at once.
    """
    node = state.nodes[name]
    machine.kill(node.machine)
    network.remove_port(state.control_plane.netns, node.index)
    machine.remove_namespace(node.machine.netns)
    cgroups.remove(cgroups.cgroup_of(state.name, name))
    paths = ClusterPaths.of(state.name)
    if paths.node(name).exists():
        paths.trash.mkdir(exist_ok=True)
        paths.node(name).rename(paths.trash / f"{name}-{time.time_ns()}")


def own_volume(folder: Path, owner: int) -> None:
    """Make a volume's folder, owned by the user that the images run as."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, owner, owner)
