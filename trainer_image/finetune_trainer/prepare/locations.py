"""Where a model or a dataset lies: a file on a mounted volume, or a repository on a model hub.

The operator mounts volumes at ``<mount root>/<role>`` and writes the URIs, but the part below the mount
comes from the user, and so does everything on the volume: neither ``..`` nor a symbolic link may lead out
of the mount.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from finetune_trainer.errors import DataError

HubKind = Literal["model", "dataset"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class FileLocation:
    """A path on a mounted volume."""

    uri: str
    path: Path


@dataclass(frozen=True)
class HubLocation:
    """A repository on a hub at a revision; for a dataset also the file in it."""

    uri: str
    kind: HubKind
    repository: str
    revision: str
    """Branch, tag or commit; ``main`` when the user named none."""
    path: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None


Location = FileLocation | HubLocation


def parse_model_location(uri: str) -> Location:
    """Read ``file://…`` or ``hf://org/name[@revision]``.

    Raises:
        DataError: another scheme, or a malformed URI.
    """
    if not uri.startswith("hf://"):
        return parse_file_location("spec.model", uri)
    repository, _, revision = uri.removeprefix("hf://").partition("@")
    remedy = "write hf://<organisation>/<name>, or hf://<organisation>/<name>@<branch, tag or commit>"
    if repository.startswith("datasets/"):
        raise DataError("spec.model.uri", uri, f"{uri} names a dataset; spec.model must name a model", remedy)
    revision = unquote(revision)
    if not _REPOSITORY.fullmatch(repository) or ".." in revision:
        raise DataError("spec.model.uri", uri, f"{uri} must name one model repository", remedy)
    return HubLocation(uri, "model", repository, revision or "main")


def parse_dataset_location(field: str, uri: str) -> Location:
    """Read ``file://….jsonl`` or ``hf://datasets/org/name[@revision]/path.jsonl``.

    A slash in the revision is written ``%2F``, as the Hub's own file system does.

    Raises:
        DataError: another scheme, or a malformed URI.
    """
    if not uri.startswith("hf://"):
        return parse_file_location(field, uri)
    remedy = "write hf://datasets/<organisation>/<name>[@<revision>]/<file>.jsonl"
    parts = uri.removeprefix("hf://").split("/", 3)
    if len(parts) != 4 or parts[0] != "datasets" or not parts[3]:
        raise DataError(f"{field}.uri", uri, f"{uri} must name one file of a dataset repository", remedy)
    name, _, revision = parts[2].partition("@")
    repository, revision = f"{parts[1]}/{name}", unquote(revision)
    if not _REPOSITORY.fullmatch(repository) or ".." in f"{revision}/{parts[3]}".split("/"):
        raise DataError(f"{field}.uri", uri, f"{uri} must name one file of a dataset repository", remedy)
    return HubLocation(uri, "dataset", repository, revision or "main", parts[3])


def parse_file_location(field: str, uri: str) -> FileLocation:
    """Read ``file:///absolute/path``.

    Raises:
        DataError: another scheme, a host, a relative path or ``..``.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise DataError(
            f"{field}.uri",
            uri,
            f"{uri} has the scheme {parts.scheme or '(none)'}, which is not supported",
            "use hf://… or a persistentVolumeClaim",
        )
    path = Path(unquote(parts.path))
    if parts.netloc or not path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{field}.persistentVolumeClaim.path",
            uri,
            f"{uri} must be an absolute path without '..'",
            "name a path below the root of the volume",
        )
    return FileLocation(uri, path)


def check_inside_mount(field: str, path: Path, mount_root: Path) -> None:
    """Refuse a path that is, or leads by symbolic links, outside ``<mount root>/<role>``.

    Raises:
        DataError: it does.
    """
    remedy = "name a path on the volume, and keep symbolic links within it"
    if not path.is_relative_to(mount_root) or path == mount_root:
        raise DataError(field, str(path), f"{path} must lie below {mount_root}", remedy)
    mount = mount_root / path.relative_to(mount_root).parts[0]
    if not path.resolve().is_relative_to(mount.resolve()):
        raise DataError(field, str(path), f"{path} is a symbolic link that leads out of its volume", remedy)
