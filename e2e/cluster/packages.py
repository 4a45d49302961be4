"""What the host must offer before anything is started: root, Debian packages, kernel features."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from e2e.cluster.errors import ClusterError, CommandError
from e2e.cluster.shell import run, say, step, succeeds


def require_root(verb: str) -> None:
    """Namespaces, mounts and cgroups need it; say so before the first of them fails."""
    if os.geteuid() != 0:
        raise ClusterError(
            f"`{verb}` must run as root, not as user {os.geteuid()}: it makes namespaces, mounts, cgroups",
            f"sudo -E python -m e2e.cluster {verb} …",
        )


def missing_packages(needed: Mapping[str, str]) -> list[str]:
    """Debian packages whose command or file is absent."""
    absent = [pkg for item, pkg in needed.items() if not (Path(item).exists() or shutil.which(item))]
    return sorted(set(absent))


def ensure_debian_packages(needed: Mapping[str, str]) -> None:
    """Install what is missing, where this machine has apt-get; else name what to install."""
    names = missing_packages(needed)
    if not names:
        return
    wanted = " ".join(names)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"missing on this machine: {wanted} (Debian's names)", "install them, then try again")
    require_root("up")
    say(f"installing Debian packages: {wanted}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    with step("apt-get install"):
        try:
            run(["apt-get", "update", "-q"], timeout=300, env=env)
            run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *names], timeout=900, env=env)
        except CommandError as error:
            raise ClusterError(error.message, f"install by hand: apt-get install {wanted}") from error
    still = missing_packages(needed)
    if still:
        raise ClusterError(f"still missing after apt-get install: {' '.join(still)}", "install them by hand")


def check_kernel() -> None:
    """Try each kernel feature in a throw-away network namespace, so that `up` fails early and by name."""
    if "overlay" not in Path("/proc/filesystems").read_text() and not succeeds(["modprobe", "overlay"]):
        raise ClusterError("this kernel has no overlay file system", "load it (modprobe overlay) or build it in")
    if not (Path("/sys/fs/cgroup/cgroup.controllers").exists() or Path("/sys/fs/cgroup/memory").is_dir()):
        raise ClusterError(
            "no cgroup tree at /sys/fs/cgroup", "mount cgroup v2 there, or v1 with `memory`, `pids`, `cpu`"
        )
    probe = f"ftprobe{os.getpid()}"
    net = ["nsenter", f"--net=/run/netns/{probe}"]
    nat = [*net, "iptables", "-w", "-t", "nat", "-A", "POSTROUTING"]
    features: list[tuple[str, list[str], str]] = [
        (
            "network namespaces",
            ["ip", "netns", "add", probe],
            "run as real root with CAP_SYS_ADMIN (a privileged container)",
        ),
        (
            "veth pairs",
            ["ip", "-n", probe, "link", "add", "pa", "type", "veth", "peer", "name", "pb"],
            "CONFIG_VETH",
        ),
        ("bridges", ["ip", "-n", probe, "link", "add", "pbr", "type", "bridge"], "CONFIG_BRIDGE"),
        (
            "address translation",
            [*nat, "-j", "MASQUERADE"],
            "CONFIG_NF_NAT, CONFIG_NETFILTER_XT_TARGET_MASQUERADE",
        ),
        (
            "the statistic match (kube-proxy)",
            [*nat, "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "RETURN"],
            "CONFIG_NETFILTER_XT_MATCH_STATISTIC",
        ),
        (
            "mount and process namespaces",
            [*net, "unshare", "--mount", "--pid", "--fork", "mount", "-t", "proc", "proc", "/proc"],
            "CONFIG_PID_NS, and the right to mount",
        ),
    ]
    try:
        for feature, command, need in features:
            try:
                run(command, timeout=20)
            except CommandError as error:
                raise ClusterError(f"this machine cannot do {feature}: {error.message}", f"it needs {need}") from error
    finally:
        succeeds(["ip", "netns", "del", probe])
