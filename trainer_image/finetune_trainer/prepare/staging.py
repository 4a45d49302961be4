"""Writing into the cache that all jobs of a storage share.

What is there under its final name is whole: folders and files are made under another name and renamed.
Two jobs that stage the same thing at once both succeed, and a job that is interrupted finds the files
it had completed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from finetune_trainer.config import JobIdentity
from finetune_trainer.prepare.errors import storage_errors


class Cache:
    """The cache folder, as one job sees it."""

    def __init__(self, root: Path, job: JobIdentity) -> None:
        key = f"{job.namespace}/{job.name}/{job.uid}"
        self._root = root
        self._own = root / "partial" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def model_folder(self, repository: str, commit: str) -> Path:
        """Where a model of a hub lies once it is staged."""
        return self._root / "models" / repository.replace("/", "--") / commit

    def data_folder(self, digest: str) -> Path:
        """Where a checked dataset lies once it is staged."""
        return self._root / "data" / digest

    def partial(self, name: str) -> Path:
        """A folder of this job alone for something unfinished; it survives until :meth:`clean`.

        Raises:
            StorageError: it cannot be made.
        """
        folder = self._own / name
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clean(self) -> None:
        """Remove what was unfinished."""
        shutil.rmtree(self._own, ignore_errors=True)


def publish_folder(made: Path, target: Path) -> None:
    """Give a finished folder its name; if another job was faster, its folder stays.

    Raises:
        StorageError: the cache cannot be written.
    """
    _make_readable(made)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(made)


def write_file(target: Path, lines: Iterable[bytes]) -> None:
    """Write and rename. Writing the same content again is harmless, also while somebody reads it.

    Raises:
        StorageError: the cache cannot be written.
    """
    # Not the process id: in containers that is 1 for everybody.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as handle:
                handle.writelines(lines)
                handle.flush()
                os.fsync(handle.fileno())
            partial.chmod(0o644)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _make_readable(folder: Path) -> None:
    """The pods of other jobs may run as other users."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
