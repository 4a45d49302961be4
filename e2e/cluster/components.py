"""The command lines of the control plane's and a node's programs."""

from __future__ import annotations

from pathlib import Path

from e2e.cluster.addresses import API_PORT, SERVICE_RANGE, Addresses
from e2e.cluster.config import DOMAIN
from e2e.cluster.machine import Program

ETCD_CLIENT = "http://127.0.0.1:2379"

NODE_GRACE = "20s"
"""A silent node counts as lost after this long (default 40-50 s): tests of lost nodes are quicker."""


def _api_ready(kubeconfig: str) -> str:
    """A shell condition. Earlier than this the built-in roles are missing, and clients give up with "forbidden"."""
    return f"kubectl --kubeconfig={kubeconfig} --request-timeout=5s get --raw=/readyz >/dev/null 2>&1"


def flags(values: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _etcd(folder: Path) -> Program:
    values = {
        "name": "default",
        "data-dir": str(folder / "etcd"),
        "listen-client-urls": ETCD_CLIENT,
        "advertise-client-urls": ETCD_CLIENT,
        "listen-peer-urls": "http://127.0.0.1:2380",
        "initial-advertise-peer-urls": "http://127.0.0.1:2380",
        "initial-cluster": "default=http://127.0.0.1:2380",
        # A test cluster need not survive a power cut; each write is ten times quicker.
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }
    return Program("etcd", ["etcd", *flags(values)])


def _apiserver(pki: Path, addresses: Addresses) -> Program:
    values = {
        "etcd-servers": ETCD_CLIENT,
        "secure-port": str(API_PORT),
        "advertise-address": addresses.control_plane,
        "tls-cert-file": f"{pki}/apiserver.crt",
        "tls-private-key-file": f"{pki}/apiserver.key",
        "client-ca-file": f"{pki}/ca.crt",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "service-cluster-ip-range": SERVICE_RANGE,
        "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
        "service-account-key-file": f"{pki}/service-account.pub",
        "service-account-signing-key-file": f"{pki}/service-account.key",
        "kubelet-certificate-authority": f"{pki}/ca.crt",
        "kubelet-client-certificate": f"{pki}/kubelet-client.crt",
        "kubelet-client-key": f"{pki}/kubelet-client.key",
        # Else `kubectl logs` looks the node's name up in DNS.
        "kubelet-preferred-address-types": "InternalIP",
        # Webhooks and aggregated APIs are reached at their pods: no kube-proxy runs beside the API server.
        "enable-aggregator-routing": "true",
        "requestheader-client-ca-file": f"{pki}/ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": f"{pki}/front-proxy-client.crt",
        "proxy-client-key-file": f"{pki}/front-proxy-client.key",
        "profiling": "false",
    }
    return Program("kube-apiserver", ["kube-apiserver", *flags(values)])


def _controller_manager(folder: Path, pki: Path) -> Program:
    values = {
        "kubeconfig": f"{folder}/controller-manager.kubeconfig",
        "authentication-kubeconfig": f"{folder}/controller-manager.kubeconfig",
        "authorization-kubeconfig": f"{folder}/controller-manager.kubeconfig",
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "root-ca-file": f"{pki}/ca.crt",
        "service-account-private-key-file": f"{pki}/service-account.key",
        "cluster-signing-cert-file": f"{pki}/ca.crt",
        "cluster-signing-key-file": f"{pki}/ca.key",
        "node-monitor-grace-period": NODE_GRACE,
        "node-monitor-period": "2s",
        "profiling": "false",
    }
    command = ["kube-controller-manager", *flags(values)]
    return Program("kube-controller-manager", command, _api_ready(values["kubeconfig"]))


def _scheduler(folder: Path) -> Program:
    values = {
        "kubeconfig": f"{folder}/scheduler.kubeconfig",
        "authentication-kubeconfig": f"{folder}/scheduler.kubeconfig",
        "authorization-kubeconfig": f"{folder}/scheduler.kubeconfig",
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "profiling": "false",
    }
    return Program("kube-scheduler", ["kube-scheduler", *flags(values)], _api_ready(values["kubeconfig"]))


def control_plane_programs(folder: Path, pki: Path, addresses: Addresses) -> list[Program]:
    """etcd, API server, controllers, scheduler and cluster DNS."""
    ready = _api_ready(f"{folder}/coredns.kubeconfig")
    dns = Program("coredns", ["coredns", "-conf", str(folder / "Corefile")], ready)
    return [
        _etcd(folder),
        _apiserver(pki, addresses),
        _controller_manager(folder, pki),
        _scheduler(folder),
        dns,
    ]


def node_programs(folder: Path, node: str, node_ip: str) -> list[Program]:
    """containerd, kubelet and kube-proxy, as on any node."""
    kubelet = {
        "config": f"{folder}/kubelet.json",
        "kubeconfig": f"{folder}/kubelet.kubeconfig",
        "root-dir": f"{folder}/kubelet",
        "hostname-override": node,
        "node-ip": node_ip,
    }
    socket = folder / "containerd.sock"
    return [
        Program("containerd", ["containerd", "--config", f"{folder}/containerd.toml"]),
        Program("kubelet", ["kubelet", *flags(kubelet)], f"[ -S {socket} ]"),
        Program("kube-proxy", ["kube-proxy", f"--config={folder}/kube-proxy.json"]),
    ]
