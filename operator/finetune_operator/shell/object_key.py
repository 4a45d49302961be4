"""What a FineTuneJob is called inside the operator."""

from __future__ import annotations

from typing import NamedTuple


class ObjectKey(NamedTuple):
    """Names one FineTuneJob."""

    namespace: str
    name: str
