"""Why prepare stops. Foreign exceptions become one of these at the edge where they appear.

PrepareError
├── UserFaultError       the user's to mend: field, value, remedy    exit 65, never retried
├── UnreachableError     a hub did not answer                        exit 1, tried again
├── StorageError         the cache cannot be written                 exit 1, tried again
└── StopRequestedError   SIGTERM                                     exit 75, tried again
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.messages import UserFault

_VALUE_LIMIT = 120


class PrepareError(Exception):
    """Base of everything that prepare raises on purpose."""


class UserFaultError(PrepareError):
    """The model or the dataset cannot work, and only the user can change that."""

    def __init__(self, field: str, value: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.field = field
        self.value = shorten(value)
        self.remedy = remedy

    def as_message(self) -> UserFault:
        """What goes into the termination message."""
        return UserFault(field=self.field, value=self.value, message=str(self), remedy=self.remedy)


class UnreachableError(PrepareError):
    """A hub did not answer, or answered that it cannot now. Not the user's fault."""


class StorageError(PrepareError):
    """The cache volume is full or not writable."""


class StopRequestedError(PrepareError):
    """The pod was told to stop."""


def shorten(text: str, limit: int = _VALUE_LIMIT) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
        UserFaultError: a file or folder on the user's volume must not be read.
    """
    try:
        yield
    except PermissionError as error:
        raise UserFaultError(
            field,
            str(error.filename),
            f"{error.filename} must be readable for the pod's user and is not",
            "give files mode 0644 and folders 0755, or set fsGroup on the runtime",
        ) from error
