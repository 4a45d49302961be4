"""The `local` back end: control plane and nodes are machines made of namespaces, on this host.

`up` reads top to bottom as the story of a cluster. State is on disk before each thing is made, so a failure at
any line ends in `down`, which needs nothing but that state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from e2e.cluster import cgroups, config, machine, manifests, network, node, packages, pki, proof
from e2e.cluster.addresses import API_PORT, DNS_PORT, Addresses, next_index, pick_slot
from e2e.cluster.api import Api, is_ready
from e2e.cluster.archive import image_names, pause_archive
from e2e.cluster.binaries import ensure_binaries
from e2e.cluster.components import control_plane_programs
from e2e.cluster.errors import ApiError, ClusterError
from e2e.cluster.node import MachineCrashed
from e2e.cluster.paths import ClusterPaths, state_root
from e2e.cluster.shell import locked, run, say, step, succeeds, wait_for, write_atomic
from e2e.cluster.state import Machine, State, load, require, slots_in_use
from e2e.cluster.versions import DEBIAN_PACKAGES


class LocalCluster:
    """One cluster on this host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths = ClusterPaths.of(name)

    # -- life ---------------------------------------------------------------------------------------------

    def up(self, nodes: int, gpus: int) -> None:
        packages.require_root("up")
        with self._locked():
            state = self._running()
            binaries = self._requirements()
            if state is None:
                self._create(nodes, gpus, binaries)
                return
            say(f"cluster {self.name} is up already")
            missing = nodes - sum(1 for _ in state.live_nodes())
            for _ in range(missing):
                self._add(state, self._free_name(state), binaries)

    def _running(self) -> State | None:
        """The state of a healthy cluster, None when there is none; a broken one is an error."""
        state = load(self.name)
        if state is None:
            if self.paths.root.exists():
                shutil.rmtree(self.paths.root)
            return None
        dead = [name for name, there in state.live_nodes() if not there.machine.alive()]
        if not state.control_plane.alive():
            dead.insert(0, "the control plane")
        if dead:
            raise ClusterError(
                f"cluster {self.name} is left over from before: {', '.join(dead)} no longer run(s)"
                " (was the machine restarted?)",
                f"python -m e2e.cluster down --name {self.name}",
            )
        return state

    def _requirements(self) -> Path:
        packages.ensure_debian_packages(DEBIAN_PACKAGES)
        binaries = ensure_binaries()
        pause_archive()
        return binaries

    def _create(self, nodes: int, gpus: int, binaries: Path) -> None:
        with step("kernel features checked"):
            packages.check_kernel()
        state = self._register(gpus)
        try:
            with step("control plane answers"):
                self._start_control_plane(state, binaries)
            with step(f"{nodes} node(s) Ready, with {gpus} GPUs each"):
                names = [f"node-{index}" for index in range(1, nodes + 1)]
                self._start_nodes(state, {name: index + 1 for index, name in enumerate(names)}, gpus, binaries)
            with step("cluster DNS answers"):
                self._check_dns(state)
        except BaseException as error:
            say(f"`up` failed; taking down what it began ({type(error).__name__})")
            self._remove(state)
            if isinstance(error, MachineCrashed):
                raise ClusterError(str(error)) from error
            raise

    def _register(self, gpus: int) -> State:
        """Reserve a network for the cluster; from here on `down` knows it."""
        with locked(state_root() / "slots.lock"):
            slot = pick_slot(self.name, slots_in_use().values(), network.host_networks())
            self.paths.root.mkdir(parents=True, exist_ok=True)
            state = State(self.name, slot, Machine(f"ftop-{self.name}"), gpus, host_rules=network.filter_rules())
            state.save()
        return state

    def _start_control_plane(self, state: State, binaries: Path) -> None:
        folder, addresses, keys = self.paths.control_plane, state.addresses, self.paths.pki
        (folder / "etcd").mkdir(parents=True, mode=0o700)
        pki.make_cluster_certificates(keys, addresses)
        for user in ("controller-manager", "scheduler", "coredns"):
            server = f"https://127.0.0.1:{API_PORT}"
            text = config.kubeconfig(server, user, keys, keys / user, self.name)
            write_atomic(folder / f"{user}.kubeconfig", text, 0o600)
        write_atomic(folder / "Corefile", config.corefile(addresses, DNS_PORT, folder / "coredns.kubeconfig"))
        admin = config.kubeconfig(f"https://{addresses.api}:{API_PORT}", "admin", keys, keys / "admin", self.name)
        write_atomic(self.paths.kubeconfig, admin, 0o600)
        network.create_control_plane(state.control_plane.netns, addresses)
        programs = control_plane_programs(folder, keys, addresses)
        machine.start(state.control_plane, folder, programs, node.program_environment(binaries))
        state.save()
        api = self._api(state)

        def ready() -> bool:
            node.check_machine(state.control_plane, folder)
            return api.ready()

        wait_for("the API server", ready, timeout=90, every=0.1)
        for obj in manifests.dns_objects(addresses):
            self._apply_soon(api, obj)

    def _apply_soon(self, api: Api, obj: dict[str, Any]) -> None:
        """Apply an object whose namespace the API server may still be making."""

        def attempt() -> bool:
            api.apply(obj)
            return True

        wait_for(f"{obj['kind']} {obj['metadata']['name']}", attempt, timeout=30)

    def _start_nodes(self, state: State, names: dict[str, int], gpus: int, binaries: Path) -> None:
        """Start nodes side by side, then load what the cluster's other nodes have."""
        api = self._api(state)
        before = {name: node.heartbeat(found) for name, found in api.nodes().items()}
        for name, index in names.items():
            node.start(state, name, index, gpus, binaries)

        def finish(name: str) -> None:
            node.wait_ready(state, name, api, before.get(name))
            for archive in [str(pause_archive()), *state.images.values()]:
                node.load_image(state, name, Path(archive))
            self._set_gpus(api, name, gpus)

        self._on_nodes(list(names), finish)
        state.save()

    def _set_gpus(self, api: Api, name: str, gpus: int) -> None:
        """A kubelet that writes its first status at this moment may undo the patch: repeat until it holds."""

        def attempt() -> bool:
            if node.gpus_allocatable(api, name) == gpus:
                return True
            node.set_gpus(api, name, gpus)
            return False

        wait_for(f"node {name} to report {gpus} GPUs", attempt, timeout=60, every=1)

    def _on_nodes(self, names: Sequence[str], work: Any) -> None:
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            for future in [pool.submit(work, name) for name in names]:
                future.result()

    def _check_dns(self, state: State) -> None:
        """Ask as a pod would: over the Service's address, from a node's network."""
        netns = next(there.machine.netns for _, there in state.live_nodes())
        ask = ["/bin/busybox", "nslookup", f"kubernetes.default.svc.{config.DOMAIN}", "10.96.0.10"]

        def probe() -> bool:
            return "10.96.0.1" in run(["nsenter", f"--net=/run/netns/{netns}", *ask], timeout=5)

        wait_for("cluster DNS to answer on its Service address", probe, timeout=60)

    def down(self) -> None:
        packages.require_root("down")
        with self._locked():
            state = load(self.name)
            if state is None:
                shutil.rmtree(self.paths.root, ignore_errors=True)
                say(f"there is no cluster {self.name}")
                return
            with step(f"cluster {self.name} removed"):
                left = self._remove(state)
            if left:
                raise ClusterError(
                    "left over after `down`:\n  " + "\n  ".join(left), "remove these by hand, then tell us"
                )
            say(f"nothing is left; looked at: {proof.CHECKED}")

    def _remove(self, state: State) -> list[str]:
        """Nodes first, control plane last; then look for anything that stayed."""
        machines = [*(there.machine for there in state.nodes.values()), state.control_plane]
        with ThreadPoolExecutor(len(machines)) as pool:
            list(pool.map(machine.kill, machines))
        names = [there.netns for there in machines]
        try:
            wait_for("the cluster's processes to end", lambda: not proof.processes_in(names), timeout=15)
        except ClusterError:
            say("some processes do not end")
        stuck = proof.processes_in(names)
        for name in state.nodes:
            node.remove(state, name)
        machine.remove_namespace(state.control_plane.netns)
        network.remove_host_link(state.addresses)
        self._remove_cgroups()
        self._remove_files()
        found = stuck + proof.left_over(state)
        if found:
            # Keep what `down` needs for another try.
            self.paths.root.mkdir(parents=True, exist_ok=True)
            state.save()
        return found

    def _remove_files(self) -> None:
        """Nodes side by side: most of the time is waiting for the disk. The state goes last."""
        folders = list(self.paths.trash.glob("*"))
        with ThreadPoolExecutor(max(1, len(folders))) as pool:
            list(pool.map(lambda folder: succeeds(["rm", "-rf", folder], timeout=600), folders))
        shutil.rmtree(self.paths.root, ignore_errors=True)

    def _remove_cgroups(self) -> None:
        """The kernel may need a moment to empty a cgroup whose processes were just killed."""
        top = cgroups.cluster_cgroup(self.name)

        def attempt() -> bool:
            cgroups.remove(top)
            return not cgroups.folders(top)

        try:
            wait_for("cgroups to empty", attempt, timeout=10, every=0.1)
        except ClusterError:
            say(f"cgroup {top} does not empty")

    # -- content ------------------------------------------------------------------------------------------

    def load_image(self, archives: Sequence[Path]) -> None:
        packages.require_root("load-image")
        with self._locked():
            state = self._require_running()
            for given in archives:
                names = " ".join(image_names(given))
                archive = self._keep(given, state.images.get(names))
                loaded: list[str] = []

                def work(name: str, archive: Path = archive, loaded: list[str] = loaded) -> None:
                    if node.load_image(state, name, archive):
                        loaded.append(name)

                with step(f"image {names}"):
                    self._on_nodes([name for name, _ in state.live_nodes()], work)
                say(f"           loaded on {', '.join(sorted(loaded)) or 'no node: all have it'}")
                state.images[names] = str(archive)
                state.save()

    def _keep(self, archive: Path, former: str | None) -> Path:
        """A hard link of the cluster's own: the cache may drop the archive, and a later node still gets it."""
        facts = archive.stat()
        link = self.paths.images / f"{facts.st_ino}-{facts.st_mtime_ns}.tar"
        if former and former != str(link):
            Path(former).unlink(missing_ok=True)
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            try:
                os.link(archive, link)
            except OSError:  # another file system
                shutil.copy2(archive, link)
        return link

    def volume(self, name: str, folder: Path, namespace: str) -> None:
        packages.require_root("volume")
        state = self._require_running()
        api = self._api(state)
        if namespace != "default":
            space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            api.apply(space)
        for obj in manifests.volume_objects(name, folder, namespace):
            try:
                api.apply(obj)
            except ApiError as error:
                raise ClusterError(
                    f"volume {name}: {error.message}",
                    "a claim cannot change its folder; delete the claim and its volume first",
                ) from error
        node.own_volume(folder, manifests.VOLUME_OWNER)
        claim = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"

        def bound() -> bool:
            return bool(api.request("GET", claim).get("status", {}).get("phase") == "Bound")

        wait_for(f"claim {namespace}/{name} to be Bound", bound, timeout=60)
        say(f"claim {name} (namespace {namespace}) is {folder}")

    # -- nodes --------------------------------------------------------------------------------------------

    def kill_node(self, node_name: str) -> None:
        packages.require_root("kill-node")
        with self._locked():
            state = self._require_running()
            there = state.nodes.get(node_name)
            if there is None:
                known = ", ".join(name for name, _ in state.live_nodes())
                raise ClusterError(f"there is no node {node_name!r}", f"name one of: {known}")
            if there.killed:
                say(f"node {node_name} is killed already")
                return
            network.cut(state.control_plane.netns, state.addresses, there.index)
            there.killed = True
            there.images.clear()
            state.save()
            node.remove(state, node_name)
            state.save()
        say(f"node {node_name} is gone; its Node object turns NotReady by itself")

    def add_node(self, node_name: str | None) -> str:
        packages.require_root("add-node")
        with self._locked():
            state = self._require_running()
            name = node_name or self._free_name(state)
            if name in state.nodes and not state.nodes[name].killed:
                say(f"node {name} is there already")
                return name
            self._add(state, name, self._requirements())
        return name

    def _free_name(self, state: State) -> str:
        number = 1 + max(
            (int(name[5:]) for name in state.nodes if name.startswith("node-") and name[5:].isdigit()),
            default=0,
        )
        return f"node-{number}"

    def _add(self, state: State, name: str, binaries: Path) -> None:
        former = state.nodes.get(name)
        index = former.index if former else next_index([there.index for there in state.nodes.values()])
        try:
            with step(f"node {name} Ready"):
                self._start_nodes(state, {name: index}, state.gpus, binaries)
        except BaseException as error:
            node.remove(state, name)
            del state.nodes[name]
            state.save()
            if isinstance(error, MachineCrashed):
                raise ClusterError(str(error)) from error
            raise

    # -- questions ----------------------------------------------------------------------------------------

    def kubeconfig(self) -> Path:
        require(self.name)
        return self.paths.kubeconfig

    def status(self) -> dict[str, Any]:
        state = require(self.name)
        try:
            found = self._api(state).nodes()
            answer = "yes"
        except (OSError, ApiError) as error:
            found, answer = {}, f"no ({error})"
        nodes = {}
        for name, there in state.nodes.items():
            ready = name in found and is_ready(found[name])
            nodes[name] = {
                "machine": "killed" if there.killed else "running" if there.machine.alive() else "dead",
                "ready": ready,
                "address": state.addresses.node(there.index),
                "pods": state.addresses.pods(there.index),
                "gpus": there.gpus,
            }
        return {
            "name": self.name,
            "apiAnswers": answer,
            "api": f"https://{state.addresses.api}:{API_PORT}",
            "hostAddressForPods": f"{state.addresses.host} ({config.HOST_ALIAS})",
            "kubeconfig": str(self.paths.kubeconfig),
            "logs": f"{self.paths.root}/control-plane/logs, {self.paths.root}/nodes/*/logs",
            "nodes": nodes,
            "images": sorted(name for names in state.images for name in names.split()),
        }

    # -- helpers ------------------------------------------------------------------------------------------

    def _locked(self) -> Any:
        return locked(state_root() / f"{self.name}.lock")

    def _api(self, state: State) -> Api:
        return Api(state.addresses.api, self.paths.pki)

    def _require_running(self) -> State:
        require(self.name)
        state = self._running()
        assert state is not None
        return state


def addresses_of(name: str) -> Addresses:
    """The addresses of a cluster that exists; for tests that start a server on the host."""
    return require(name).addresses


def describe(status: dict[str, Any]) -> str:
    return json.dumps(status, indent=2)
