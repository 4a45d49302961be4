"""Reads back a status that another version, or a hand, may have written.

A status that does not parse must stop nothing: as little as possible is left out, and never the number of the newest
attempt, which names children and must not be used twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from finetune_operator.api.status import FineTuneJobStatus


def read_status(raw: dict[str, Any]) -> tuple[FineTuneJobStatus, str]:
    """The status, and the fields that had to be left out."""
    left_out: list[str] = []
    # An entry of a list or a field of a field first; when that leaves something incomplete, the whole of it.
    for depth in (2, 1):
        try:
            status = FineTuneJobStatus.model_validate(raw)
            break
        except ValidationError as error:
            paths = {each["loc"][:depth] for each in error.errors()}
            left_out += sorted(".".join(map(str, path)) for path in paths)
            raw = _without(raw, paths)
    else:
        status = FineTuneJobStatus.model_validate(raw)
    newest = max((attempt.number for attempt in status.attempts), default=0)
    if newest > status.totals.attempts:
        status = status.model_copy(update={"totals": status.totals.model_copy(update={"attempts": newest})})
    return status, ", ".join(left_out)


def _without(raw: dict[str, Any], paths: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    result = copy.deepcopy(raw)
    # From the end, so that the indexes of a list stay right.
    for *parents, last in sorted(
        paths, key=lambda path: [(isinstance(part, str), part) for part in path], reverse=True
    ):
        container: Any = result[parents[0]] if parents else result
        if isinstance(container, list) or (isinstance(container, dict) and last in container):
            del container[last]
    return result
