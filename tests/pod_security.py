"""Pod Security Standards, profile ``restricted`` (with ``baseline``), as far as a pod spec of ours can break it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def restricted_violations(spec: dict[str, Any], annotations: dict[str, str] | None = None) -> list[str]:
    """Everything that admission would refuse."""
    return list(_violations(spec, annotations or {}))


def _violations(spec: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for key, profile in annotations.items():
        if key.startswith(_APPARMOR) and profile != "runtime/default" and not profile.startswith("localhost/"):
            yield f"annotation {key}"
    for volume in spec.get("volumes", []):
        yield from (f"volume type {kind}" for kind in set(volume) - {"name"} - _VOLUMES)
    pod = spec.get("securityContext", {})
    for sysctl in pod.get("sysctls", []):
        if sysctl["name"] not in _SAFE_SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _options(pod, "pod")
    for container in [*spec.get("initContainers", []), *spec.get("ephemeralContainers", []), *spec["containers"]]:
        own = container.get("securityContext", {})
        name = container["name"]
        if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"{name}: runAsNonRoot"
        if own.get("runAsUser", pod.get("runAsUser")) == 0:
            yield f"{name}: runAsUser 0"
        profile = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile {profile}"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if own.get("privileged"):
            yield f"{name}: privileged"
        if own.get("procMount", "Default") != "Default":
            yield f"{name}: procMount"
        for hook in [*container.get("lifecycle", {}).values(), *_probes(container)]:
            yield from (
                f"{name}: host of a probe" for kind in ("httpGet", "tcpSocket") if hook.get(kind, {}).get("host")
            )
        yield from _options(own, name)
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name}: capabilities"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name}: hostPort"


def _probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [container[name] for name in ("livenessProbe", "readinessProbe", "startupProbe") if name in container]


def _options(context: dict[str, Any], name: str) -> Iterator[str]:
    """What pods and containers have alike."""
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name}: hostProcess"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{name}: appArmorProfile"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{name}: seLinuxOptions"
