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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import obstore
from obstore.exceptions import AlreadyExistsError

from finetune_trainer.credentials import Role
from finetune_trainer.layout import MANIFEST, join
from finetune_trainer.store_access import PATIENCE, STORE_ERRORS, Patience, StoreError, open_access

PIECE_BYTES = 8 * 1024 * 1024
"""Large objects travel in pieces of this size, a few at once; each is tried again by itself."""
_PARALLEL = 4
_MOST_PIECES = 5000
"""S3 allows 10,000 for one object."""
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
    """Objects below one URI.

    Every method may raise :data:`STORE_ERRORS` when the store cannot be reached or used, and ``ConfigError`` when it
    refuses the credentials or has no such bucket.
    """

    def __init__(self, uri: str, role: Role = "output", patience: Patience = PATIENCE) -> None:
        """``file://`` folders are made; for where credentials come from see :mod:`finetune_trainer.store_access`."""
        self.uri = uri
        self._access = open_access(uri, role, patience)
        self._objects = self._access.objects

    def read(self, path: str) -> bytes | None:
        """The object, or None when there is none."""
        try:
            pieces = self._pieces(path)
            if len(pieces) == 1:
                return pieces[0]()
            with ThreadPoolExecutor(_PARALLEL) as pool:
                return b"".join(pool.map(lambda fetch: fetch(), pieces))
        except FileNotFoundError:
            return None

    def sha256(self, path: str) -> str | None:
        """Digest of the object, read in pieces; None when there is none."""
        digest = hashlib.sha256()
        try:
            for fetch in self._pieces(path):
                digest.update(fetch())
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def write(self, path: str, data: bytes | memoryview) -> None:
        """Create or replace; a reader sees all of it or nothing."""
        size = max(PIECE_BYTES, -(-len(data) // _MOST_PIECES))
        self._access.run(
            lambda: obstore.put(self._objects, path, data, chunk_size=size, max_concurrency=_PARALLEL),
            may_be_missing=False,
        )

    def create(self, path: str, data: bytes) -> bool:
        """Create; False when it exists already, which is left as it is.

        It may be our own whose answer was lost: False then, too, so a caller must not take it for somebody else's.
        In a remote store only objects of one piece are created atomically. A larger one is looked for and then
        written, for S3's clients offer no condition on uploads in pieces: two writers may both believe they were first.
        """
        if self._access.is_remote and len(data) > PIECE_BYTES:
            if self._exists(path):
                return False
            self.write(path, data)
            return True
        try:
            self._access.run(
                lambda: obstore.put(self._objects, path, data, mode="create", use_multipart=False),
                may_be_missing=False,
            )
        except AlreadyExistsError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Delete; it is well when there is nothing."""
        try:
            self._access.run(lambda: obstore.delete(self._objects, path))
        except FileNotFoundError:
            return

    def list(self) -> list[str]:
        """All paths, in no order."""
        found = self._access.run(lambda: obstore.list(self._objects).collect(), may_be_missing=False)
        return [str(meta["path"]) for meta in found]

    def _exists(self, path: str) -> bool:
        try:
            self._access.run(lambda: obstore.head(self._objects, path))
        except FileNotFoundError:
            return False
        return True

    def _pieces(self, path: str) -> Sequence[Callable[[], bytes]]:
        """Functions that fetch the parts of an object. One that is replaced meanwhile comes mixed: digests tell."""

        def begin() -> tuple[int, bytes]:
            answer = obstore.get(self._objects, path)  # not head(): that cannot say that there is no bucket
            size = int(answer.meta["size"])
            return size, bytes(answer.bytes()) if size <= PIECE_BYTES else b""

        def fetch(start: int, end: int) -> bytes:
            ranged = {"range": (start, end)}
            return self._access.run(lambda: bytes(obstore.get(self._objects, path, options=ranged).bytes()))

        size, whole = self._access.run(begin)
        if size <= PIECE_BYTES:
            return [lambda: whole]
        return [partial(fetch, start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES)]


class CheckpointStore(Store):
    """Fences and checkpoints of one run on one dataset."""

    def __init__(self, uri: str, role: Role = "checkpoint", patience: Patience = PATIENCE) -> None:
        super().__init__(uri, role, patience)

    def claim_fence(self, claim: bytes) -> int:
        """Take the next number; when two gangs race, each gets its own."""
        fence = self.highest_fence() + 1
        while not self.create(f"fence-{fence}/claim.json", claim):
            fence += 1
        return fence

    def highest_fence(self) -> int:
        """The newest gang's number; 0 when there is none."""
        return max((int(match[1]) for path in self.list() if (match := _CLAIM.match(path))), default=0)

    def save(self, spot: Spot, state: bytes | memoryview, manifest: bytes) -> str:
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


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


__all__ = [
    "PIECE_BYTES",
    "STATE_FILE",
    "STORE_ERRORS",
    "CheckpointStore",
    "Patience",
    "Spot",
    "Store",
    "StoreError",
    "sha256",
]
