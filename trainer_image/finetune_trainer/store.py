"""Where checkpoints and results lie: one interface over folders and object stores, by obstore.

    <uri>/baseline.json                    what the base model scores, measured once per run
    <uri>/fence-<k>/claim.json             gang k exists; created once, never deleted
    <uri>/fence-<k>/step-<n>/state.safetensors
    <uri>/fence-<k>/step-<n>/manifest.json written last: without it the step does not exist

Fences tell the gangs of one run apart when an old one is not dead but only unreachable. A gang claims the
next number by conditional create, writes below its own fence only, and stops when it sees a higher one.
Torch-free.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from finetune_trainer.layout import MANIFEST, join

STORE_ERRORS = (OSError, BaseError)
"""What any access may raise."""
STATE_FILE = "state.safetensors"
_CLAIM = re.compile(r"^fence-(\d+)/claim\.json$")
_STEP_FILE = re.compile(r"^fence-(\d+)/step-(\d+)/")


@dataclass(frozen=True, order=True)
class Spot:
    """The place of one checkpoint. Its order is the order of truth: newer gang first, then later step."""

    fence: int
    step: int

    @property
    def path(self) -> str:
        """Relative to the run's folder."""
        return f"fence-{self.fence}/step-{self.step}"


class Store:
    """Objects below one URI; every method may raise what obstore raises when the store cannot be reached."""

    def __init__(self, uri: str) -> None:
        """``file://`` folders are made; for ``s3://``, ``gs://``, ``az://`` the credentials come from the
        environment."""
        self.uri = uri
        self._objects = _open(uri)

    def read(self, path: str) -> bytes | None:
        """The object, or None when there is none."""
        try:
            return bytes(obstore.get(self._objects, path).bytes())
        except FileNotFoundError:
            return None

    def sha256(self, path: str) -> str | None:
        """Digest of the object, read in pieces; None when there is none."""
        digest = hashlib.sha256()
        try:
            for piece in obstore.get(self._objects, path).stream():
                digest.update(piece)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def write(self, path: str, data: bytes) -> None:
        """Create or replace; a reader sees all of it or nothing."""
        obstore.put(self._objects, path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Create; False when it exists already, which is left as it is."""
        try:
            obstore.put(self._objects, path, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Delete; it is well when there is nothing."""
        try:
            obstore.delete(self._objects, path)
        except FileNotFoundError:
            return

    def list(self) -> list[str]:
        """All paths, in no order."""
        return [str(meta["path"]) for meta in obstore.list(self._objects).collect()]


class CheckpointStore(Store):
    """Fences and checkpoints of one run on one dataset."""

    def claim_fence(self, claim: bytes) -> int:
        """Take the next number; when two gangs race, each gets its own."""
        fence = self.highest_fence() + 1
        while not self.create(f"fence-{fence}/claim.json", claim):
            fence += 1
        return fence

    def highest_fence(self) -> int:
        """The newest gang's number; 0 when there is none."""
        return max((int(match[1]) for path in self.list() if (match := _CLAIM.match(path))), default=0)

    def save(self, spot: Spot, state: bytes, manifest: bytes) -> str:
        """Write a checkpoint, the manifest last; returns its URI."""
        self.write(f"{spot.path}/{STATE_FILE}", state)
        self.write(f"{spot.path}/{MANIFEST}", manifest)
        return join(self.uri, spot.path)

    def spots(self) -> list[Spot]:
        """Checkpoints that have a manifest, best first."""
        return sorted((spot for spot, files in self._files().items() if MANIFEST in files), reverse=True)

    def load(self, spot: Spot) -> tuple[bytes, bytes] | None:
        """(manifest, state) as stored, or None when one is missing; the caller verifies."""
        manifest = self.read(f"{spot.path}/{MANIFEST}")
        state = self.read(f"{spot.path}/{STATE_FILE}") if manifest is not None else None
        return None if manifest is None or state is None else (manifest, state)

    def prune(self, own_fence: int, keep: int) -> None:
        """Keep the best ``keep`` checkpoints of this and older gangs; remove the rest and unfinished ones.

        Call it between saves only: an unfinished step of the own fence would be the one being written. The
        manifest goes first, so an interrupted removal leaves nothing that looks complete.
        """
        files = {spot: names for spot, names in self._files().items() if spot.fence <= own_fence}
        kept = sorted((spot for spot, names in files.items() if MANIFEST in names), reverse=True)[:keep]
        for spot in files.keys() - set(kept):
            for name in sorted(files[spot], key=lambda name: name != MANIFEST):
                self.delete(f"{spot.path}/{name}")

    def _files(self) -> dict[Spot, set[str]]:
        found: dict[Spot, set[str]] = {}
        for path in self.list():
            if match := _STEP_FILE.match(path):
                found.setdefault(Spot(int(match[1]), int(match[2])), set()).add(path[match.end() :])
        return found


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def _open(uri: str) -> Any:
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return from_url(uri)
    # mkdir: the folder of a new run does not exist; cleanup: pruned steps leave no empty folders behind.
    return LocalStore(Path(unquote(parts.path)), mkdir=True, automatic_cleanup=True)
