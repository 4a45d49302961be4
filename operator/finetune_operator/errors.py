"""Exceptions of the operator.

    OperatorError
    ├── ConfigError           the operator's own environment cannot work: it exits
    └── KubernetesError       the API server said no, or nothing
        ├── NotFound          404: the object is gone; the caller decides what that means
        ├── AlreadyExists     409 on create: somebody (an earlier self) was quicker
        ├── Conflict          409 on update: the pass was decided on a stale read and is dropped
        ├── Invalid           422: a bug of ours; retried with backoff and logged as an error
        ├── Forbidden         401, 403: RBAC lacks a verb; the message names it
        └── Unavailable       429, 5xx, timeouts, broken connections: retried with backoff
            └── ChildRefused  a child cannot be created now: said in the status, retried with backoff

User errors are not exceptions: they become conditions.
"""


class OperatorError(Exception):
    """Base of all."""


class ConfigError(OperatorError):
    """The environment of the operator itself cannot work."""


class KubernetesError(OperatorError):
    """An API call did not succeed."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(KubernetesError):
    """404."""


class AlreadyExists(KubernetesError):
    """409 with reason AlreadyExists."""


class Conflict(KubernetesError):
    """409 with reason Conflict."""


class Invalid(KubernetesError):
    """400, 422."""


class Forbidden(KubernetesError):
    """401, 403."""


class Unavailable(KubernetesError):
    """429, 5xx, a timeout or a broken connection."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class ChildRefused(Unavailable):
    """A child cannot be created: a quota, a policy, or an object of the same name that belongs to somebody else."""
