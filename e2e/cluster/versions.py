"""Every version, build flag and package name in one place: an upgrade is an edit of this file alone."""

from __future__ import annotations

from dataclasses import dataclass, field

KUBERNETES = "1.35.4"
"""Release of all Kubernetes parts; its staging modules carry the same number with a leading 0 (0.35.4)."""

ETCD = "3.6.5"
"""Debian's 3.4 is too old: watch-lists of current clients need RequestWatchProgress."""

COREDNS = "1.13.1"
HELM = "4.3.1"

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


@dataclass(frozen=True)
class GoBuild:
    """One Go module and the programs built from it."""

    name: str
    version: str
    module: str
    programs: dict[str, str]
    """Binary name -> package path."""
    in_place: bool = False
    """Build in the downloaded module folder; possible where its go.mod has no local replacements."""
    staging: bool = False
    """The module's go.mod replaces modules by ./staging folders, which a module download lacks."""
    variables: dict[str, str] = field(default_factory=dict)
    """Link-time variables (`-X`): the version stamps."""
    main: str = ""
    """File beside this one that holds the program, when the module is a library to us."""

    @property
    def ldflags(self) -> str:
        """Small binaries with the version stamped in."""
        return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in self.variables.items())])


_MAJOR, _MINOR, _ = KUBERNETES.split(".")
_STAMPS = {"gitVersion": f"v{KUBERNETES}", "gitMajor": _MAJOR, "gitMinor": _MINOR, "gitTreeState": "clean"}
_KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)

GO_BUILDS: tuple[GoBuild, ...] = (
    GoBuild(
        name="k8s",
        version=KUBERNETES,
        module="k8s.io/kubernetes",
        programs={name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS},
        staging=True,
        variables={f"k8s.io/component-base/version.{key}": value for key, value in _STAMPS.items()},
    ),
    GoBuild(
        name="etcd",
        version=ETCD,
        module="go.etcd.io/etcd/server/v3",
        programs={"etcd": "go.etcd.io/etcd/server/v3"},
    ),
    GoBuild(
        name="coredns",
        version=COREDNS,
        module="github.com/coredns/coredns",
        programs={"coredns": "."},
        main="coredns/main.go",
    ),
    GoBuild(
        name="helm",
        version=HELM,
        module="helm.sh/helm/v4",
        programs={"helm": "./cmd/helm"},
        in_place=True,
        variables={"helm.sh/helm/v4/internal/version.version": f"v{HELM}"},
    ),
)
