"""API objects that `up` and `volume` create: cluster DNS, its rights, and claims on folders of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2e.cluster.addresses import DNS_PORT, DNS_SERVICE, Addresses
from e2e.cluster.errors import ClusterError

Json = dict[str, Any]

VOLUME_OWNER = 65532
"""The user that operator and trainer images run as."""


def dns_objects(addresses: Addresses) -> list[Json]:
    """CoreDNS runs beside the control plane, so its Service has no selector and names the endpoint itself."""
    ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
    metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": DNS_SERVICE,
            "ports": [{"name": n, "protocol": p, "port": 53, "targetPort": DNS_PORT} for n, p in ports],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-host",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [addresses.control_plane], "conditions": {"ready": True}}],
        "ports": [{"name": n, "protocol": p, "port": DNS_PORT} for n, p in ports],
    }
    return [service, endpoints, *_dns_rights()]


def _dns_rights() -> list[Json]:
    watch = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces", "endpoints"], "verbs": watch},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
    ]
    rbac = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": rules,
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": "system:coredns"}],
        },
    ]


def parse_volume(text: str) -> tuple[str, Path]:
    """`NAME=DIR` -> claim name and absolute folder."""
    name, separator, folder = text.partition("=")
    if not separator or not name or not folder:
        raise ClusterError(f"--volume {text!r} must be NAME=DIR", "for example --volume models=/srv/models")
    return name, Path(folder).expanduser().absolute()


def volume_objects(name: str, folder: Path, namespace: str) -> list[Json]:
    """A claim that every node can mount, bound in advance to a folder of the host."""
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    size = {"storage": "100Gi"}
    volume = f"{namespace}-{name}"
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **shared,
                "capacity": size,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(folder), "type": "Directory"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "name": name,
                    "namespace": namespace,
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**shared, "resources": {"requests": size}, "volumeName": volume},
        },
    ]
