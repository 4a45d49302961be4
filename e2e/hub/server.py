"""A local double of a model hub: the HTTP layout that the ``huggingface_hub`` client reads, over a folder.

The Hub is an internet service, so tests cannot count on it. This server lets the real client code run
against the real wire format on the loopback device (``HF_ENDPOINT=http://127.0.0.1:<port>``)::

    ROOT/<org>/<name>/…                    a model repository, revision ``main``
    ROOT/<org>/<name>@<revision>/…         the same repository at a branch or tag
    ROOT/datasets/<org>/<name>[@rev]/…     a dataset repository
    …/.gated                               files need ``Authorization: Bearer <text of this file>``

A commit is a sha1 over the folder's content, so an edited folder is a new commit. Large files have a sha256
as ETag, as on the Hub; its redirect to another host is left out, for the client treats one host as none.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?P<rest>/.*)?")
_RESOLVE = re.compile(r"/(?P<datasets>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(?P<first>\d+)-(?P<last>\d*)")
_CHUNK = 1024 * 1024


class HubError(Exception):
    """An answer other than 2xx, with the code that the client turns into its exception."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Repository:
    """One repository at one revision: a folder."""

    folder: Path

    def files(self) -> list[Path]:
        """All files but the server's own marks, in the order of their names."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and path.name != ".gated")
        return sorted(found)

    def name_of(self, file: Path) -> str:
        """The file's path inside the repository."""
        return file.relative_to(self.folder).as_posix()

    @property
    def commit(self) -> str:
        """sha1 over names and contents."""
        entries = [[self.name_of(file), digest(file, "sha1")] for file in self.files()]
        return hashlib.sha1(json.dumps(entries).encode()).hexdigest()

    def token(self) -> str | None:
        """What a request must present, None for an open repository."""
        gate = self.folder / ".gated"
        return gate.read_text(encoding="utf-8").strip() if gate.is_file() else None


def digest(file: Path, algorithm: str) -> str:
    """The file's content hash; remembered until the file changes."""
    stat = file.stat()
    return _digest(file, algorithm, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _digest(file: Path, algorithm: str, _mtime: int, _size: int) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


@dataclass
class Shelf:
    """Finds repositories below a root."""

    root: Path

    def find(self, kind: str, repo: str, revision: str) -> Repository:
        """The repository at a branch, a tag or a commit.

        Raises:
            HubError: there is none; the Hub answers 401 then, lest it tell what is private.
        """
        org, name = repo.split("/")
        base = (self.root / "datasets" if kind == "datasets" else self.root) / org
        versions = {path.name.partition("@")[2] or "main": path for path in _folders(base, name)}
        if not versions or ".." in (org, name):
            raise HubError(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")
        if revision in versions:
            return Repository(versions[revision])
        for folder in versions.values():
            if Repository(folder).commit == revision:
                return Repository(folder)
        raise HubError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")


def _folders(base: Path, name: str) -> list[Path]:
    if not base.is_dir():
        return []
    return [path for path in base.iterdir() if path.is_dir() and path.name.partition("@")[0] == name]


class LocalHub(ThreadingHTTPServer):
    """The server. ``url`` is the client's ``HF_ENDPOINT``."""

    daemon_threads = True

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        """Bind; port 0 takes any free one. ``serve_forever`` answers."""
        super().__init__((host, port), _Handler)
        self.shelf = Shelf(root)
        self.url = f"http://{host}:{self.server_address[1]}"
        self.requests: list[str] = []
        """``METHOD path`` of every request so far: what the client fetched, and what it did not."""
        self.broken = False
        """True: answer 503 to everything, as the Hub does in an outage."""
        self.moved: dict[str, str] = {}
        """Repositories by their old names: the Hub redirects to the new one."""


@contextmanager
def serving(root: Path) -> Iterator[LocalHub]:
    """Serve a folder from a thread of this process for the duration of the block."""
    with LocalHub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Routes of the Hub that the client uses for reading."""

    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: ``LocalHub.requests`` is the log."""

    def _answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        try:
            self._route(urlsplit(self.path).path)
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self._send_json(error.status, {"error": str(error)}, headers)

    def _route(self, path: str) -> None:
        if self.server.broken:
            raise HubError(HTTPStatus.SERVICE_UNAVAILABLE, "", "Service unavailable")
        for old, new in self.server.moved.items():
            if f"/{old}/" in f"{path}/":
                location = f"{path}/".replace(f"/{old}/", f"/{new}/", 1).removesuffix("/")
                self._send(HTTPStatus.TEMPORARY_REDIRECT, {"Location": location, "Content-Length": "0"})
                return
        if match := _API.fullmatch(path):
            self._api(match["kind"], match["repo"], match["rest"] or "")
        elif match := _RESOLVE.fullmatch(path):
            kind = "datasets" if match["datasets"] else "models"
            repository = self.server.shelf.find(kind, match["repo"], unquote(match["revision"]))
            self._resolve(repository, unquote(match["path"]))
        else:
            raise HubError(HTTPStatus.NOT_FOUND, "", f"{path} is not served")

    def _api(self, kind: str, repo: str, rest: str) -> None:
        verb, _, tail = rest.lstrip("/").partition("/")
        revision, _, folder = tail.partition("/")
        repository = self.server.shelf.find(kind, repo, unquote(revision) or "main")
        if verb == "tree":
            self._send_json(HTTPStatus.OK, _tree(repository, unquote(folder)))
        elif verb in ("", "revision"):
            self._send_json(HTTPStatus.OK, _info(repository, repo))
        else:
            raise HubError(HTTPStatus.NOT_FOUND, "", f"{rest} is not served")

    def _resolve(self, repository: Repository, name: str) -> None:
        token = repository.token()
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            raise HubError(HTTPStatus.FORBIDDEN, "GatedRepo", "Access to this repository is restricted")
        file = self._inside(repository.folder, name)
        algorithm = "sha256" if file.suffix in _LARGE else "sha1"
        etag = f'"{digest(file, algorithm)}"'
        self._send_file(file, {"X-Repo-Commit": repository.commit, "ETag": etag})

    def _inside(self, folder: Path, name: str) -> Path:
        file = folder / name
        if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
            raise HubError(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{name} does not exist")
        return file

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        size = file.stat().st_size
        first, last, status = 0, size - 1, HTTPStatus.OK
        if match := _RANGE.fullmatch(self.headers.get("Range", "")):
            first, last = int(match["first"]), min(int(match["last"] or size - 1), size - 1)
            status = HTTPStatus.PARTIAL_CONTENT
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{size}"}
        length = max(last - first + 1, 0)
        self._send(status, headers | {"Content-Length": str(length), "Accept-Ranges": "bytes"})
        if self.command != "HEAD":
            self._copy(file, first, length)

    def _copy(self, file: Path, first: int, length: int) -> None:
        # A client that goes away is what some tests are about.
        with file.open("rb") as handle, suppress(ConnectionError):
            handle.seek(first)
            while length > 0 and (chunk := handle.read(min(_CHUNK, length))):
                self.wfile.write(chunk)
                length -= len(chunk)

    def _send_json(self, status: HTTPStatus, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._send(status, (headers or {}) | {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _info(repository: Repository, repo: str) -> dict[str, Any]:
    names = [{"rfilename": repository.name_of(file)} for file in repository.files()]
    gated = "manual" if repository.token() is not None else False
    return {
        "id": repo,
        "sha": repository.commit,
        "siblings": names,
        "private": False,
        "gated": gated,
        "tags": [],
    }


def _tree(repository: Repository, folder: str) -> list[dict[str, Any]]:
    """Every file below ``folder``; the client asks recursively, so folders themselves are left out."""
    return [
        _tree_entry(repository, file)
        for file in repository.files()
        if not folder or repository.name_of(file).startswith(f"{folder}/")
    ]


def _tree_entry(repository: Repository, file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    entry = {
        "type": "file",
        "path": repository.name_of(file),
        "size": size,
        "oid": digest(file, "sha1"),
    }
    if file.suffix in _LARGE:
        entry["lfs"] = {"oid": digest(file, "sha256"), "size": size, "pointerSize": 134}
    return entry
