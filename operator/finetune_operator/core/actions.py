"""What a pass wants done: data only. The order in which the shell does it is part of the meaning.

1. ``sweep``: what pods that are gone have read. It is evidence of nothing, and goes first: what comes after it tells
   the next pass that it is done.
2. ``create``: children, once, by deterministic names; what is there already stays as it is.
3. ``status``: one write, with the resourceVersion that the decision was made on. When it conflicts the rest is dropped.
4. ``delete``: only now, so that evidence is recorded before it is destroyed.
5. ``events``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Deletion:
    """A child to delete, guarded by its uid so that a namesake is never hit."""

    kind: Literal["Job", "ConfigMap"]
    name: str
    uid: str | None = None


@dataclass(frozen=True)
class Sweep:
    """The ConfigMaps and Services of a stage, or of one attempt, which nothing reads any more."""

    stage: str
    attempt: int | None = None


@dataclass(frozen=True)
class Event:
    """A Kubernetes event on the FineTuneJob, in the past tense; the same one is not sent twice."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"
    key: str = ""
    """Tells events of the same reason apart, e.g. the attempt's number."""


@dataclass(frozen=True)
class LogSource:
    """The pod whose log reports progress."""

    pod_name: str
    pod_uid: str


@dataclass(frozen=True)
class Actions:
    """The whole answer of ``reconcile``."""

    create: tuple[Manifest, ...] = ()
    status: dict[str, Any] | None = None
    """The complete new status; None: nothing changed, nothing is written."""
    delete: tuple[Deletion, ...] = ()
    sweep: tuple[Sweep, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next look when no event comes first; None: the resync is enough."""
    follow_log: LogSource | None = None
    waits_for_nodes: str | None = None
    """Pool (``placement_policy.pool_key``) whose nodes the job's gang does not have in full; no other gang is created
    for it meanwhile. With ``creates_pods`` it is the condition for creating."""
    stands_in_line: str | None = None
    """Pool that another gang waits for; this job is woken when it is its turn."""

    @property
    def creates_pods(self) -> bool:
        """Whether something is created that asks for nodes, and not only what pods read."""
        return any(is_job(manifest) for manifest in self.create)


def is_job(manifest: Manifest) -> bool:
    """Whether pods come of it."""
    return bool(manifest["kind"] == "Job")
