"""Loads an image archive without the layers that a node has already.

`ctr images import` unpacks and hashes all of an archive each time: a minute for a trainer image whose last layer
changed by a kilobyte. containerd finds a layer that the archive lacks in its own store, so such layers are left
out of the stream: the same load takes a second or two.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from e2e.cluster.errors import CommandError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Image:
    """One image of an archive, as OCI describes it."""

    names: list[str]
    manifest: bytes
    config: bytes
    layers: dict[str, tarfile.TarInfo]
    """Digest of the layer -> where it lies in the archive."""


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def read_images(archive: tarfile.TarFile) -> list[Image] | None:
    """The images of a `docker save` archive; None when its layers are compressed, so that digests are unknown."""
    images = []
    for entry in json.loads(_content(archive, "manifest.json")):
        config = _content(archive, entry["Config"])
        digests = json.loads(config)["rootfs"]["diff_ids"]
        members = [_resolve(archive, name) for name in entry["Layers"]]
        if any(_first_bytes(archive, member) == GZIP for member in members):
            return None
        layers = [
            {"mediaType": LAYER, "digest": digest, "size": member.size}
            for digest, member in zip(digests, members, strict=True)
        ]
        described = {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}
        text = json.dumps(manifest, sort_keys=True).encode()
        images.append(Image(entry.get("RepoTags") or [], text, config, dict(zip(digests, members, strict=True))))
    return images


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    return member.read() if member else b""


def _resolve(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    """The member that holds the bytes; archives link layers that occur twice."""
    member = archive.getmember(name)
    for _ in range(8):
        if not member.issym() and not member.islnk():
            break
        target = member.linkname
        if member.issym():
            target = str(Path(member.name).parent.joinpath(target))
        parts: list[str] = []
        for part in Path(target).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        member = archive.getmember("/".join(parts))
    return member


def _first_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    return handle.read(2) if handle else b""


def write_layout(source: tarfile.TarFile, images: list[Image], present: Collection[str], sink: IO[bytes]) -> None:
    """Write an OCI layout that leaves out the layers in `present`."""
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as target:
        _add(target, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        written: set[str] = set()
        entries: list[dict[str, Any]] = []
        for image in images:
            for content in (image.config, image.manifest):
                _add(target, _blob(digest_of(content)), content)
            for digest, member in image.layers.items():
                if digest not in present and digest not in written:
                    info = tarfile.TarInfo(_blob(digest))
                    info.size = member.size
                    target.addfile(info, source.extractfile(member))
                    written.add(digest)
            entries += [_entry(image.manifest, name) for name in image.names]
        _add(target, "index.json", json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


def _entry(manifest: bytes, name: str) -> dict[str, Any]:
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    return {
        "mediaType": MANIFEST,
        "digest": digest_of(manifest),
        "size": len(manifest),
        "annotations": annotations,
    }


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(target: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    target.addfile(info, io.BytesIO(content))


@contextmanager
def _fed(command: list[str], timeout: float) -> Iterator[IO[bytes]]:
    """A command's standard input; the command must then end well, and in time."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError:
            pass  # The command ended early; what it printed says why.
        said = process.stdout.read().decode(errors="replace") if process.stdout else ""
        if process.wait() != 0:
            raise CommandError(f"{' '.join(command)}: exit status {process.returncode}\n{said}")
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def import_slim(ctr: list[str], archive: Path, present: Collection[str], timeout: float) -> bool:
    """Import an archive without the layers in `present`; False when it cannot be taken apart."""
    with tarfile.open(archive) as source:
        images = read_images(source)
        if images is None:
            return False
        with _fed([*ctr, "images", "import", "-"], timeout) as sink:
            write_layout(source, images, present, sink)
    return True
