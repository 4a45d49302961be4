"""Was this run on this data published before? Then there is nothing to train."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from finetune_trainer.layout import MANIFEST
from finetune_trainer.messages import PublishedResult

ADAPTER = "adapter_model.safetensors"


class DamagedResultError(ValueError):
    """A result has a manifest, but its files do not match it."""


def find_result(folder: Path, uri: str, run_digest: str, data_digest: str) -> PublishedResult | None:
    """The published adapter in a folder, if it is whole and of exactly this run and data.

    Raises:
        DamagedResultError: it is of this run and data, but not whole.
        OSError: it cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedResultError(f"{MANIFEST} is not JSON") from error
    try:
        if (manifest["run"]["digest"], manifest["dataDigest"]) != (run_digest, data_digest):
            return None
        return PublishedResult(
            uri=uri, digest=_verified(folder, manifest["files"]), metrics=_numbers(manifest["metrics"])
        )
    except DamagedResultError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedResultError(f"{MANIFEST} cannot be used: {error!r}") from error


def _verified(folder: Path, files: dict[str, dict[str, Any]]) -> str:
    """Compare every file; the adapter's sha256."""
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or _sha256(path) != entry["sha256"]:
            raise DamagedResultError(f"{name} is missing or has other content than {MANIFEST} says")
    return str(files[ADAPTER]["sha256"])


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Only finite numbers: the operator copies them into a status."""
    return {
        name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)
    }
