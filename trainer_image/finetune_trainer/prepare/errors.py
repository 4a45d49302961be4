"""What only prepare can meet, besides :mod:`finetune_trainer.errors`. Foreign exceptions become ours where they appear.

TrainerError
├── UnreachableError     1  a hub did not answer
└── StorageError         1  the cache cannot be written
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.errors import DataError, TrainerError


class UnreachableError(TrainerError):
    """A hub did not answer, or answered that it cannot now. Not the user's fault."""

    cause = "Unreachable"


class StorageError(TrainerError):
    """The cache volume is full or not writable."""

    cause = "Storage"


_STORAGE_REMEDIES = {
    errno.ENOSPC: "the volume is full: enlarge its claim, or remove folders below models/ and data/ in it",
    errno.EDQUOT: "the quota is used up: raise it, or remove folders below models/ and data/ in it",
    errno.EACCES: "the pod's user may not write: set fsGroup on the runtime, or the volume's permissions",
    errno.EPERM: "the pod's user may not write: set fsGroup on the runtime, or the volume's permissions",
    errno.EROFS: "the volume is mounted read-only: the storage claim must allow ReadWriteMany",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Say which folder could not be written and what helps; other errors pass through.

    Raises:
        StorageError: the disk is full, or the folder must not be written by this user.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_REMEDIES:
            raise
        where = error.filename or path
        raise StorageError(f"{where} cannot be written ({error.strerror}): {_STORAGE_REMEDIES[error.errno]}") from error


@contextmanager
def readable_by_the_pod(field: str) -> Iterator[None]:
    """Turn a refusal by file permissions into the user's fault; a pod's user is rarely the one who copied.

    Raises:
        DataError: a file or folder on the user's volume must not be read.
    """
    try:
        yield
    except PermissionError as error:
        raise DataError(
            field,
            str(error.filename),
            f"{error.filename} must be readable for the pod's user and is not",
            "give files mode 0644 and folders 0755, or set fsGroup on the runtime",
        ) from error
