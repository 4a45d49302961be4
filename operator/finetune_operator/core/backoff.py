"""Waiting twice as long each time, up to a limit."""

from __future__ import annotations

_MOST_DOUBLINGS = 64
"""What is counted may go on for weeks; a power of two of it would overflow. No limit is beyond this many."""


def doubled(first: float, times: int, most: float) -> float:
    """0, ``first``, twice that, four times … ``most``, for 0, 1, 2, 3 … times."""
    return min(first * 2.0 ** min(times - 1, _MOST_DOUBLINGS), most) if times > 0 else 0.0
