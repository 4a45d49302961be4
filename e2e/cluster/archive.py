"""Image archives (the `docker save` format): writing the pause image, reading the names inside any."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

from e2e.cluster.config import PAUSE_IMAGE
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import cache_root
from e2e.cluster.shell import locked

BUSYBOX = Path("/bin/busybox")


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))


def pause_archive() -> Path:
    """The image that holds a pod's namespaces open: one static busybox that sleeps. Needs no build tool."""
    target = cache_root() / "images" / "pause-1.tar"
    with locked(cache_root() / "locks" / "pause.lock"):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            part.write_bytes(_pause_image(BUSYBOX.read_bytes()))
            part.replace(target)
    return target


def _pause_image(busybox: bytes) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _add(archive, "bin/busybox", busybox, 0o755)
    config = {
        "architecture": "amd64" if "x86_64" in _machine() else "arm64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as archive:
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "layer.tar", layer.getvalue())
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return image.getvalue()


def _machine() -> str:
    return os.uname().machine


def image_names(path: Path) -> list[str]:
    """The image names that an archive will bring."""
    try:
        with tarfile.open(path) as archive:
            member = archive.extractfile("manifest.json")
            manifest = json.load(member) if member else []
    except (tarfile.TarError, KeyError, json.JSONDecodeError) as error:
        raise ClusterError(
            f"{path} is no image archive: {error}",
            "write one with `docker save` or `buildah push IMAGE docker-archive:FILE:IMAGE`",
        ) from error
    return [name for image in manifest for name in image.get("RepoTags") or []]


def content_key(path: Path) -> str:
    """Tells one content of a file from another, without reading gigabytes."""
    facts = path.stat()
    return f"{facts.st_size}-{facts.st_mtime_ns}"
