"""The header of a safetensors file, read without torch: names, types and shapes of its tensors.

Layout: 8 bytes little-endian header length, a JSON header, then the tensors without gaps. So the header
gives the file's exact size, and a download that was cut short shows without reading the weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEADER_LIMIT = 100_000_000  # the format's own limit


class BadSafetensorsError(ValueError):
    """The file is not a whole safetensors file; the message says how."""


@dataclass(frozen=True)
class Tensor:
    """One entry of the header."""

    name: str
    dtype: str
    parameters: int
    size: int
    """Bytes."""


def read_header(file: Path) -> list[Tensor]:
    """All tensors of a file.

    Raises:
        BadSafetensorsError: it is cut short, has bytes to spare or a header that cannot be read.
        OSError: it cannot be opened.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise BadSafetensorsError(f"has {size} bytes and no readable header: cut short, or another format")
        header = _parse(handle.read(length))
    tensors, end = _tensors(header)
    if size != 8 + length + end:
        problem = "cut short" if size < 8 + length + end else "too long"
        raise BadSafetensorsError(f"is {problem}: {size} bytes, its header says {8 + length + end}")
    return tensors


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise BadSafetensorsError("has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise BadSafetensorsError("has a header that is not a JSON object")
    return header


def _tensors(header: dict[str, Any]) -> tuple[list[Tensor], int]:
    """The entries, and where the last one ends."""
    tensors, end = [], 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            end = max(end, last)
            tensors.append(Tensor(name, str(entry["dtype"]), math.prod(entry["shape"]), last - first))
    except (KeyError, TypeError, ValueError) as error:
        raise BadSafetensorsError("has a header with an entry that cannot be read") from error
    return tensors, end
