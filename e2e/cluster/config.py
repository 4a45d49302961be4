"""Configuration files of a node and of CoreDNS, as data: nothing is read or written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.cluster.addresses import DNS_SERVICE, POD_RANGE, Addresses

PAUSE_IMAGE = "localhost/pause:1"
DOMAIN = "cluster.local"
GPU_RESOURCE = "nvidia.com/gpu"
HOST_ALIAS = "host.finetune.internal"
"""A name by which pods reach a server on the host (an object store of a test, say)."""

Json = dict[str, Any]


def kubelet_config(node_ip: str, folder: Path, pki: Path, cgroup: str) -> Json:
    """KubeletConfiguration of a node that shares its kernel with other nodes.

    Its cgroups lie below a root of the node's own, because the usual one belongs to one kubelet per host, and
    nothing is reserved for the system, because no node owns it. Garbage collection of images is off: there is no
    registry to fetch them from again.
    """
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node_ip,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(folder / "kubelet-serving.crt"),
        "tlsPrivateKeyFile": str(folder / "kubelet-serving.key"),
        "containerRuntimeEndpoint": f"unix://{folder / 'containerd.sock'}",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": DOMAIN,
        "resolvConf": str(folder / "resolv.conf"),
        "podLogsDir": str(folder / "pods"),
        "failSwapOn": False,
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": True,
        "cgroupRoot": cgroup,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "24h",
        "maxPods": 250,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "4s",
        "shutdownGracePeriod": "0s",
    }


def containerd_config(folder: Path) -> str:
    """containerd with its own root, state and socket.

    `restrict_oom_score_adj`: where scores may not be lowered (a container without CAP_SYS_RESOURCE), every
    sandbox would fail with "can't get final child's PID from pipe: EOF".
    """
    return f"""version = 2
root = "{folder / "containerd"}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{folder / "containerd.sock"}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder / "opt"}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder / "cni"}"
"""


def cni_config(folder: Path, pod_range: str) -> Json:
    """Pods hang on point-to-point links, not on a bridge.

    So all traffic is routed, and a Service whose pod sits on the same node works without bridge netfilter.
    """
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "ipam"),
                    "ranges": [[{"subnet": pod_range}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kube_proxy_config(kubeconfig: Path, node: str, node_ip: str) -> Json:
    """One kube-proxy per node; it leaves the connection-tracking limits, which are the host's, alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "hostnameOverride": node,
        "bindAddress": node_ip,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "conntrack": {
            "maxPerCore": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def corefile(addresses: Addresses, port: int, kubeconfig: Path) -> str:
    """Cluster names, one alias for the host, and a quick "no" for everything else."""
    return f""".:{port} {{
    bind {addresses.control_plane}
    errors
    ready 127.0.0.1:8181
    cache {{
        success 9984 5
        denial 9984 1
    }}
    hosts {{
        {addresses.host} {HOST_ALIAS}
        ttl 5
        fallthrough
    }}
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def kubeconfig(server: str, user: str, pki: Path, credentials: Path, name: str) -> str:
    """A client configuration that points at certificate files (JSON is YAML)."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority": str(pki / "ca.crt")}}],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": str(credentials.with_suffix(".crt")),
                    "client-key": str(credentials.with_suffix(".key")),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }
    return json.dumps(document, indent=2) + "\n"
