"""How measured times are summed up."""

from __future__ import annotations

import math
from collections.abc import Iterable


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed; raises ``ValueError`` for none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def p95(values: Iterable[float]) -> float:
    """19 of 20 are no more than this."""
    return quantile(values, 0.95)
