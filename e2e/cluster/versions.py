"""Every version, build flag and package name in one place: an upgrade is an edit of this file alone."""

from __future__ import annotations

KUBERNETES = "1.35.4"
"""Release of all Kubernetes parts; its staging modules carry the same number with a leading 0 (0.35.4)."""

ETCD = "3.6.5"
"""Debian's 3.4 is too old: watch-lists of current clients need RequestWatchProgress."""

COREDNS = "1.13.1"
HELM = "4.1.4"
"""The newest that is made for KUBERNETES' minor version, and so shares its packages."""

KWOK = "0.8.0"
"""For loads that no machine could run; only benchmarks need it. Its Kubernetes libraries are newer than ours."""

DEBIAN_SUITE = "bookworm"
"""Suite of the local base image (Python 3.11)."""

BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
"""What the base image holds besides the minimal system."""

GO_LANGUAGE = "1.25.0"
"""The `go` line of generated modules; an older Go fetches a newer toolchain by itself."""

DEBIAN_PACKAGES: dict[str, str] = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "/usr/lib/cni/host-local": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "/bin/busybox": "busybox-static",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
"""What a cluster needs on the host: command or file -> Debian package that brings it."""

IMAGE_PACKAGES: dict[str, str] = {"buildah": "buildah", "debootstrap": "debootstrap"}
"""What building images needs besides."""


_MAJOR, _MINOR, _ = KUBERNETES.split(".")
_STAMPS = {"gitVersion": f"v{KUBERNETES}", "gitMajor": _MAJOR, "gitMinor": _MINOR, "gitTreeState": "clean"}

GO_MODULES: dict[str, str] = {
    "k8s.io/kubernetes": KUBERNETES,
    "go.etcd.io/etcd/server/v3": ETCD,
    "github.com/coredns/coredns": COREDNS,
    "helm.sh/helm/v4": HELM,
}
"""What is built, as requirements of one module: what the programs share is compiled once.

Two cores take 9 minutes for all of them, and took 15 while Helm, etcd and CoreDNS were modules of their own.
"""

GO_PROGRAMS: dict[str, str] = {
    **{
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    },
    "etcd": "go.etcd.io/etcd/server/v3",
    "coredns": "./coredns",
    "helm": "helm.sh/helm/v4/cmd/helm",
}
"""Program -> package; one that begins with a dot lies beside this file."""

GO_VARIABLES: dict[str, str] = {
    **{f"k8s.io/component-base/version.{key}": value for key, value in _STAMPS.items()},
    "helm.sh/helm/v4/internal/version.version": f"v{HELM}",
}
"""Link-time variables (`-X`): the version stamps."""
