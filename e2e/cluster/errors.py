"""The one error of this package: what went wrong, and what the reader can do about it.

ClusterError
├── CommandError   a command we ran failed or took too long
└── ApiError       the API server answered with an error status
"""

from __future__ import annotations


class ClusterError(Exception):
    """Something the user can act on; `remedy` says how."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class CommandError(ClusterError):
    """A command failed; the message carries the end of what it printed."""


class ApiError(ClusterError):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the API server answered {status}: {message}")
        self.status = status
