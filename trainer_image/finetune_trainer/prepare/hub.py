"""Reading from a model hub: which commit a revision is, which files it has, and fetching some of them.

All exceptions of the client become ours here. The question behind each is "whose move is it?": a
repository that does not exist is the user's, an endpoint that does not answer is nobody's, so it is tried
again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, httpx

from finetune_trainer.errors import ConfigError, DataError, shorten
from finetune_trainer.prepare.errors import UnreachableError, storage_errors
from finetune_trainer.prepare.locations import HubLocation
from finetune_trainer.prepare.stop import Stop
from finetune_trainer.uri_prefixes import find_uri_fault

_TIMEOUT_SECONDS = 20.0
_DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    commit: str
    files: tuple[str, ...]


class Hub:
    """A model hub; the endpoint comes from ``HF_ENDPOINT`` and the token, if any, from ``HF_TOKEN``."""

    def __init__(self, stop: Stop, allowed_uri_prefixes: Sequence[str] | None = None) -> None:
        # Read now: the library reads the variable once, when it is first imported.
        self._endpoint = os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT
        self._api = HfApi(endpoint=self._endpoint)
        self._stop = stop
        self._allowed_uri_prefixes = allowed_uri_prefixes
        disable_progress_bars()

    def snapshot(self, field: str, location: HubLocation) -> Snapshot:
        """The commit that the revision is now, and the names of its files.

        Raises:
            ConfigError: the hub leads on to a repository that the runtime does not allow.
            DataError: no such repository or revision, or no access.
            UnreachableError: the hub does not answer.
        """
        with self._errors(field, location), self._stop.interrupting():
            info = self._api.repo_info(
                location.repository,
                repo_type=location.kind,
                revision=location.revision,
                timeout=_TIMEOUT_SECONDS,
            )
        self._check_destination(f"{field}.uri", location, info.id)
        return Snapshot(info.sha, tuple(sorted(file.rfilename for file in info.siblings or ())))

    def fetch(self, field: str, location: HubLocation, commit: str, names: Sequence[str], folder: Path) -> None:
        """Download files into a folder; whole files that an interrupted download left there are kept.

        Raises:
            DataError: a file does not exist, or no access.
            UnreachableError: the hub does not answer.
            StorageError: the folder cannot be written.
        """
        for name in names:
            with self._errors(field, location), storage_errors(folder), self._stop.interrupting():
                hf_hub_download(
                    location.repository,
                    name,
                    repo_type=location.kind,
                    revision=commit,
                    local_dir=folder,
                    endpoint=self._endpoint,
                    etag_timeout=_TIMEOUT_SECONDS,
                )

    def _check_destination(self, field: str, location: HubLocation, repository: str) -> None:
        """A repository that was renamed or moved answers under its old name by a redirect, which the client follows."""
        fault = None
        if self._allowed_uri_prefixes is not None:
            uri = f"hf://{'datasets/' if location.kind == 'dataset' else ''}{repository}"
            fault = find_uri_fault(uri, self._allowed_uri_prefixes)
        if fault is not None:
            raise ConfigError(
                field,
                location.uri,
                f"the hub leads from {location.repository} on to {uri}, which {fault}",
                "name a repository that the FineTuneRuntime's allowedUriPrefixes allow, or ask its owner to add it",
            )

    @contextmanager
    def _errors(self, field: str, location: HubLocation) -> Iterator[None]:
        """Translate; the order matters, because the client's exceptions inherit from each other."""
        try:
            yield
        except GatedRepoError as error:
            raise _no_access(field, location, "is gated") from error
        except RepositoryNotFoundError as error:
            raise DataError(
                f"{field}.uri",
                location.uri,
                f"the hub has no {location.kind} {location.repository}, or it is private",
                "check the spelling; for a private repository give a token that may read it",
            ) from error
        except RevisionNotFoundError as error:
            raise DataError(
                f"{field}.uri",
                location.uri,
                f"{location.kind} {location.repository} has no revision {location.revision}",
                "name a branch, a tag or a full commit of that repository",
            ) from error
        except LocalEntryNotFoundError as error:
            raise self._unreachable(error) from error
        except EntryNotFoundError as error:
            raise DataError(
                f"{field}.uri",
                location.uri,
                f"{location.kind} {location.repository} has no file {location.path} at {location.revision}",
                "name a file of that repository; names are case-sensitive",
            ) from error
        except HFValidationError as error:
            raise DataError(
                f"{field}.uri", location.uri, f"{error}", "write <organisation>/<name> as on the hub"
            ) from error
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise _no_access(field, location, "refuses this token") from error
            raise self._unreachable(error) from error
        except (httpx.HTTPError, OfflineModeIsEnabled) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = shorten(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 300)
        return UnreachableError(f"the hub at {self._endpoint} did not answer: {reason}")


def _no_access(field: str, location: HubLocation, problem: str) -> DataError:
    return DataError(
        f"{field}.uri",
        location.uri,
        f"{location.kind} {location.repository} {problem}",
        "accept its terms on the hub, and give a token of an account that may read it",
    )


def forget_download_state(folder: Path) -> None:
    """Remove the client's own notes from a folder of complete downloads."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
