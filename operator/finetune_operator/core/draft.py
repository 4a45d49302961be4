"""The answer of a pass while it is being written.

A ``Draft`` starts as a copy of the observed status. Decisions change the draft; the end compares it with what was
observed, so that an unchanged status is not written.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from finetune_operator.api.conditions import Condition, find_condition, is_true, set_condition
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.builders.names import attempt_name, prepare_name
from finetune_operator.constants import STAGE_PREPARE, ConditionType, Reason
from finetune_operator.core.actions import Actions, Deletion, Event, LogSource, Manifest, Sweep
from finetune_operator.core.observed import ChildJob, Observed, Pod

Phase = Literal["", "Pending", "Preparing", "Queued", "Running", "Interrupted", "Suspended", "Complete", "Failed"]

_MESSAGE_LIMIT = 2000


class Draft:
    """Collects the new status and the actions of one pass."""

    def __init__(self, observed: Observed, now: datetime) -> None:
        self.observed = observed
        # Kubernetes keeps whole seconds; more would make every status look changed.
        self.now = now.replace(microsecond=0)
        self.status: FineTuneJobStatus = observed.job.status
        self._create: list[Manifest] = []
        self._delete: list[Deletion] = []
        self._sweeps: list[Sweep] = []
        self._events: list[Event] = []
        self._requeue_after: float | None = None
        self._follow_log: LogSource | None = None
        self._waits_for_nodes: str | None = None
        self._stands_in_line: str | None = None
        self.update(observed_generation=observed.job.generation)

    def update(self, **fields: Any) -> None:
        """Replace fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def is_true(self, type_: str) -> bool:
        """Whether a condition is True in the draft."""
        return is_true(self.status.conditions, type_)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.is_true(ConditionType.COMPLETE) or self.is_true(ConditionType.FAILED)

    def condition(self, type_: str, value: bool, reason: str, message: str = "") -> bool:
        """Set one condition; whether it says something else now."""
        before = find_condition(self.status.conditions, type_)
        condition = Condition(
            type=type_,
            status="True" if value else "False",
            reason=reason,
            message=cut(message),
            last_transition_time=self.now,
            observed_generation=self.observed.job.generation,
        )
        self.update(conditions=list(set_condition(self.status.conditions, condition)))
        said = (before.status, before.reason, before.message) if before is not None else None
        return said != (condition.status, condition.reason, condition.message)

    def say(self, phase: Phase, message: str) -> None:
        """The word and the sentence for people."""
        self.update(phase=phase, message=cut(message))

    def in_progress(self, reason: str, message: str, *, running: bool = False) -> None:
        """Children exist and work: kstatus calls that current, so that ``--wait`` of GitOps tools returns."""
        self.condition(ConditionType.RECONCILING, False, reason)
        self.condition(ConditionType.STALLED, False, reason)
        self.condition(ConditionType.RUNNING, running, reason, message)

    def finish(self, *, failed: bool, reason: str, message: str) -> None:
        """The run is over."""
        self.condition(ConditionType.RECONCILING, False, reason)
        self.condition(ConditionType.STALLED, failed, reason, message if failed else "")
        self.condition(ConditionType.RUNNING, False, Reason.FINISHED)
        self.condition(ConditionType.COMPLETE, not failed, reason, "" if failed else message)
        self.condition(ConditionType.FAILED, failed, reason, message if failed else "")
        self.say("Failed" if failed else "Complete", message)
        self.event(reason, message, warning=failed)
        if self._leaves_something_behind():
            self.look_again(0)

    def _leaves_something_behind(self) -> bool:
        """Whether ``finished`` has something to do: for pods that run on, or for all when their time is over."""
        observed = self.observed
        has_limit = observed.job.spec is None or observed.job.spec.ttl_seconds_after_finished is not None
        lives = any(not pod.is_terminal for pod in (*observed.pods, *observed.loose_pods))
        return has_limit or lives or any(job.is_suspended for job in observed.jobs)

    def create(self, *manifests: Manifest) -> None:
        """Create children that may be there already."""
        self._create.extend(manifests)

    def delete(self, *deletions: Deletion) -> None:
        """Delete children after the status is written."""
        self._delete.extend(deletions)

    def delete_job(self, job: ChildJob) -> None:
        """Delete one Job; its pods save and end."""
        self.delete(Deletion("Job", job.name, job.uid))

    def delete_all_jobs(self) -> None:
        """Delete the Jobs of both stages that are not going already; their pods save and end."""
        for job in self.observed.jobs:
            if not job.is_being_deleted:
                self.delete_job(job)
        self.delete_unlisted_jobs()

    def delete_unlisted_jobs(self) -> None:
        """Delete Jobs that only their pods tell of: somebody removed our labels or the owner reference from them.

        The names are ours, and the uid guards them. Not for an attempt that goes on: a list may be a moment behind.
        """
        listed = {job.uid for job in self.observed.jobs}
        at_work = [pod for pod in self.observed.pods if pod.deletion_time is None and not pod.is_terminal]
        makers = {(pod.stage, pod.attempt, pod.job_uid) for pod in at_work if pod.job_uid not in listed}
        for stage, attempt, uid in sorted(makers):
            name = self.observed.job.name
            self.delete(
                Deletion("Job", prepare_name(name) if stage == STAGE_PREPARE else attempt_name(name, attempt), uid)
            )

    def sweep(self, sweep: Sweep) -> None:
        """Delete what pods that are gone no longer read."""
        self._sweeps.append(sweep)

    def waits_for_nodes(self, pool: str | None) -> None:
        """The gang waits for nodes of this pool; another one there must wait until all of its pods have theirs."""
        self._waits_for_nodes = pool

    def stand_in_line(self, pool: str) -> None:
        """Nothing is created before the gang that waits for nodes of this pool has them."""
        self._stands_in_line = pool

    def event(self, reason: str, message: str, *, warning: bool = False, key: str = "") -> None:
        """Tell people what happened."""
        self._events.append(
            Event(reason=reason, message=cut(message), type="Warning" if warning else "Normal", key=key)
        )

    def look_again(self, after: float) -> None:
        """Ask for another pass at the latest ``after`` seconds from now."""
        after = max(after, 0.0)
        self._requeue_after = after if self._requeue_after is None else min(self._requeue_after, after)

    def follow_log(self, pod: Pod) -> None:
        """Have the log of this pod read for progress."""
        self._follow_log = LogSource(pod.name, pod.uid)

    def actions(self) -> Actions:
        """The finished answer."""
        new, old = self.status.to_dict(), self.observed.job.status.to_dict()
        return Actions(
            create=tuple(self._create),
            status=new if new != old else None,
            delete=tuple(self._delete),
            sweep=tuple(self._sweeps),
            events=tuple(self._events),
            requeue_after=self._requeue_after,
            follow_log=self._follow_log,
            waits_for_nodes=self._waits_for_nodes,
            stands_in_line=self._stands_in_line,
        )


def cut(text: str, limit: int = _MESSAGE_LIMIT) -> str:
    """At most ``limit`` bytes of UTF-8: statuses are bounded, and texts may come from pods, in any script."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"
