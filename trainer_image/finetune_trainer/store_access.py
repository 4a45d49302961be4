"""Reaching a store: with which credentials, how patiently, and what its refusals mean.

Credentials of ``s3://`` are read from the environment under a prefix per role, so that checkpoints and results may
lie in buckets of different owners:

FINETUNE_CHECKPOINT_AWS_ACCESS_KEY_ID, …_AWS_SECRET_ACCESS_KEY, …_AWS_SESSION_TOKEN
FINETUNE_OUTPUT_AWS_ACCESS_KEY_ID, …
AWS_ENDPOINT_URL, AWS_REGION, AWS_ALLOW_HTTP      for both, as obstore reads them

Without them obstore looks where it always does: ``AWS_ACCESS_KEY_ID``, a web identity, the instance's role.

obstore repeats what it knows to be harmless: 429, 5xx, and a broken connection where the request changes nothing or
may be done twice. A lost answer to a conditional create or a delete, or a listing that breaks off, it hands to the
caller, so there is a second, slower loop here. Both are bounded: a store that stays down fails the save within two
minutes, well below the watchdog's limit. Torch-free.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from finetune_trainer.credentials import KEYS, TOKEN, Role, variable
from finetune_trainer.errors import ConfigError, TrainerError, shorten

T = TypeVar("T")

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REQUEST = re.compile(r"Error performing \w+ (\S+) in ")
_EXPIRED = ("ExpiredToken", "InvalidToken")
"""400 on AWS, and refusals all the same."""
_CLOCK = "RequestTimeTooSkewed"
"""403, but the fault of the node's clock."""
_TRANSIENT = (408, 425, 429)
_REMEDIES = {
    "No space left on device": "the volume is full: enlarge its claim, or remove what is not needed any more",
    "Disk quota exceeded": "the quota is used up: raise it, or remove what is not needed any more",
    "Read-only file system": "the volume is mounted read-only: the storage claim must allow ReadWriteMany",
    "Permission denied": "the pod's user may not write: set fsGroup on the runtime, or the volume's permissions",
    "builder error": "for an endpoint without TLS set AWS_ALLOW_HTTP=true in the runtime's env",
}


class StoreError(TrainerError):
    """The store could not be reached, is full or did not do what it was asked. Not the user's fault."""

    cause = "Storage"


STORE_ERRORS = (OSError, BaseError, StoreError)
"""What any access may raise besides the user's faults."""


@dataclass(frozen=True)
class Patience:
    """How long to wait; all in seconds. At worst an access fails after the sum of the three."""

    request: float = 30.0
    """One request, its body included: at most 8 MiB, so a store that does less than 1.1 MB/s is too slow."""
    retry: float = 30.0
    """After which obstore begins no further try."""
    total: float = 60.0
    """After which we begin no further try."""


PATIENCE = Patience()


@dataclass(frozen=True)
class Access:
    """An open location."""

    uri: str
    role: Role
    patience: Patience
    objects: Any
    """obstore's store, for its functions."""

    @property
    def is_remote(self) -> bool:
        """Whether a network lies between."""
        return not self.uri.startswith("file:")

    def run(self, action: Callable[[], T], *, may_be_missing: bool = True) -> T:
        """Do it, again where that may help; ``action`` must be harmless to repeat.

        Raises:
            ConfigError: the store refuses the credentials, or there is no such bucket.
            StoreError: it cannot be reached or used, for as long as we are patient.
            FileNotFoundError: there is no such object (only with ``may_be_missing``).
            AlreadyExistsError: there is one, for a conditional create.
        """
        deadline = time.monotonic() + self.patience.total
        pause = 0.1
        while True:
            try:
                return action()
            except AlreadyExistsError:
                raise
            except FileNotFoundError as error:
                if may_be_missing and "NoSuchBucket" not in str(error):
                    raise
                trouble: Exception = error
            except (BaseError, OSError) as error:
                trouble = error
            if not self._may_pass(trouble) or time.monotonic() + pause > deadline:
                raise self._explain(trouble) from trouble
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _may_pass(self, trouble: Exception) -> bool:
        text = _headline(trouble)
        if not self.is_remote or "builder error" in text:
            return False
        if isinstance(trouble, FileNotFoundError):
            return "NoSuchBucket" not in str(trouble)  # an upload that was completed, and the answer lost
        status = _status(text)
        return status is None or status in _TRANSIENT or status >= 500

    def _explain(self, trouble: Exception) -> TrainerError:
        text, code = _headline(trouble), _code(trouble)
        if self.uri.startswith("s3:"):
            if code == "NoSuchBucket":
                return self._no_bucket()
            if not _asks(text, self._bucket):
                return self._no_credentials(text)
            if code in _EXPIRED or (_status(text) in (401, 403) and code != _CLOCK):
                return self._refusal(f"{_status(text)} {code}".strip())
        remedy = next((remedy for mark, remedy in _REMEDIES.items() if mark in text), "")
        told = text.partition("<")[0].rstrip(": ") + (f" ({code})" if code else "")
        return StoreError(f"{self.uri} cannot be used: {shorten(told, 600)}{f'; {remedy}' if remedy else ''}")

    @property
    def _bucket(self) -> str:
        return urlsplit(self.uri).netloc

    def _no_bucket(self) -> ConfigError:
        return ConfigError(
            f"spec.{self.role}.uri",
            self.uri,
            f"there is no bucket {self._bucket} for {self.uri}",
            "create the bucket, or correct the name; AWS_ENDPOINT_URL and AWS_REGION of the runtime say where it is"
            " looked for",
        )

    def _refusal(self, answer: str) -> ConfigError:
        return ConfigError(
            f"spec.{self.role}.secretRef",
            self.uri,
            f"the store refuses the credentials for {self.uri} ({answer})",
            f"put {' and '.join(KEYS)} (for temporary ones {TOKEN} too) of someone who may list, read, write and"
            f" delete there into the Secret of spec.{self.role}.secretRef; the pod reads them as"
            f" {', '.join(variable(self.role, key) for key in KEYS)}, and without them uses its own identity",
        )

    def _no_credentials(self, text: str) -> StoreError:
        return StoreError(
            f"there are no credentials for {self.uri}: name a Secret with {' and '.join(KEYS)} in"
            f" spec.{self.role}.secretRef, or give the pod an identity ({shorten(text, 300)})"
        )


def open_access(uri: str, role: Role, patience: Patience) -> Access:
    """Open a location. ``file://`` folders are made; nothing is asked of a remote store yet.

    Raises:
        ConfigError: only half of the credentials are there.
        StoreError: the URI cannot be opened.
    """
    try:
        return Access(uri, role, patience, _open(uri, role, patience))
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(f"{uri} cannot be opened: {_headline(error)}") from error


def _open(uri: str, role: Role, patience: Patience) -> Any:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        # mkdir: the folder of a new run does not exist; cleanup: pruned steps leave no empty folders behind.
        return LocalStore(Path(unquote(parts.path)), mkdir=True, automatic_cleanup=True)
    credentials = _credentials(role) if parts.scheme == "s3" else None
    return from_url(
        uri,
        # Given at all, these options replace those of the environment.
        client_options={
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1", "yes", "on"),
            "connect_timeout": timedelta(seconds=min(5.0, patience.request)),
            "timeout": timedelta(seconds=patience.request),
        },
        retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=patience.retry)},
        # A provider and not plain settings: beside these the environment's session token would be used.
        **({"credential_provider": lambda: credentials} if credentials else {}),
    )


def _credentials(role: Role) -> dict[str, str | None] | None:
    """Those of the role, or None when it has none of its own."""
    key, secret, token = (os.environ.get(variable(role, name)) or None for name in (*KEYS, TOKEN))
    if key is None and secret is None:
        return None
    if key is None or secret is None:
        missing = KEYS[0] if key is None else KEYS[1]
        raise ConfigError(
            f"spec.{role}.secretRef",
            missing,
            f"the Secret must have both of {' and '.join(KEYS)}; {missing} is missing",
            f"add the key {missing} to the Secret",
        )
    return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}


def _headline(error: Exception) -> str:
    """Without the debug output of Rust's types that obstore appends."""
    return str(error).partition("\n\nDebug source")[0].strip() or type(error).__name__


def _status(text: str) -> int | None:
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def _code(error: Exception) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _asks(text: str, bucket: str) -> bool:
    """Whether the request that failed was for the bucket; else it was for credentials."""
    found = _REQUEST.search(text)
    return found is None or bucket in found[1]
