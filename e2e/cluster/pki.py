"""Certificates of a cluster, made with the `openssl` command: no Python dependency for twelve files."""

from __future__ import annotations

import secrets
from pathlib import Path

from e2e.cluster.addresses import API_SERVICE, Addresses
from e2e.cluster.config import DOMAIN
from e2e.cluster.shell import run

DAYS = "3650"

CLIENTS = {
    "admin": "/O=system:masters/CN=finetune-operator-admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=system:coredns",
    "kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
    "front-proxy-client": "/CN=front-proxy-client",
}
"""Key pair name -> subject; the subjects are the ones that the API server's built-in roles name."""


def _new_key(path: Path) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
    path.chmod(0o600)


def _openssl(*words: str | Path) -> None:
    run(["openssl", *words], timeout=20)


def make_authority(pki: Path) -> None:
    """The cluster's own authority, and the key that signs service account tokens."""
    pki.mkdir(parents=True, exist_ok=True)
    pki.chmod(0o700)
    _new_key(pki / "ca.key")
    subject = ["-subj", "/CN=finetune-operator-test-cluster"]
    usage = [
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    ]
    _openssl(
        "req",
        "-x509",
        "-new",
        "-key",
        pki / "ca.key",
        "-days",
        DAYS,
        "-out",
        pki / "ca.crt",
        *subject,
        *usage,
    )
    _new_key(pki / "service-account.key")
    _openssl("pkey", "-in", pki / "service-account.key", "-pubout", "-out", pki / "service-account.pub")


def make_certificate(pki: Path, target: Path, subject: str, names: str = "") -> None:
    """Write `target`.key and `target`.crt; with `names` (subjectAltName) for a server, else for a client."""
    key, request, extensions = (target.with_suffix(suffix) for suffix in (".key", ".csr", ".ext"))
    _new_key(key)
    _openssl("req", "-new", "-key", key, "-subj", subject, "-out", request)
    purpose = f"extendedKeyUsage=serverAuth\nsubjectAltName={names}\n" if names else "extendedKeyUsage=clientAuth\n"
    extensions.write_text("keyUsage=critical,digitalSignature\n" + purpose)
    authority: list[str | Path] = [
        "-CA",
        pki / "ca.crt",
        "-CAkey",
        pki / "ca.key",
        "-set_serial",
        f"0x{secrets.token_hex(16)}",
    ]
    result: list[str | Path] = ["-days", DAYS, "-extfile", extensions, "-out", target.with_suffix(".crt")]
    _openssl("x509", "-req", "-in", request, *authority, *result)
    request.unlink()
    extensions.unlink()


def make_cluster_certificates(pki: Path, addresses: Addresses) -> None:
    """Everything the control plane and its clients need."""
    make_authority(pki)
    hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
    ips = [addresses.api, addresses.control_plane, API_SERVICE, "127.0.0.1"]
    names = ",".join([*(f"DNS:{host}" for host in [*hosts, "localhost"]), *(f"IP:{ip}" for ip in ips)])
    make_certificate(pki, pki / "apiserver", "/CN=kube-apiserver", names)
    for name, subject in CLIENTS.items():
        make_certificate(pki, pki / name, subject)


def make_node_certificates(pki: Path, folder: Path, node: str, node_ip: str) -> None:
    """A node's identity (NodeRestriction goes by it) and its kubelet's serving certificate."""
    make_certificate(pki, folder / "kubelet", f"/O=system:nodes/CN=system:node:{node}")
    make_certificate(pki, folder / "kubelet-serving", f"/CN={node}", f"DNS:{node},IP:{node_ip}")
