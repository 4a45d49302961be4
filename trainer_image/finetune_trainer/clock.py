"""The time of day, in the one form in which it is written."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """``2026-05-01T12:00:00Z``."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
