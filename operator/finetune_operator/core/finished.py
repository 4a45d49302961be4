"""A finished run: its status stays. Its pods and their logs stay too, for ``ttlSecondsAfterFinished``; none runs on.

When one pod ended the run for good, its peers may still wait for it, or for a node. Deleting their Job here, and not in
the pass that recorded the end, repeats it until it has worked.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.conditions import find_condition
from finetune_operator.constants import STAGE_PREPARE, STAGE_TRAIN, ConditionType, Reason
from finetune_operator.core.actions import Sweep
from finetune_operator.core.draft import Draft


def tidy_up(draft: Draft) -> None:
    """Release nodes now, and everything that the run left behind when its time is over."""
    alive = {(pod.stage, pod.attempt) for pod in draft.observed.pods if not pod.is_terminal}
    due = _removal_time(draft)
    is_due = due is not None and draft.now >= due
    jobs = [job for job in draft.observed.jobs if not job.is_being_deleted]
    for job in jobs:
        if is_due or (job.stage, job.attempt) in alive or job.is_suspended:
            draft.delete_job(job)
    draft.delete_unlisted_jobs()
    running = find_condition(draft.status.conditions, ConditionType.RUNNING)
    is_done = running is not None and running.reason == Reason.CHILDREN_REMOVED and not jobs
    if is_due and not is_done:
        draft.sweep(Sweep(stage=STAGE_PREPARE))
        draft.sweep(Sweep(stage=STAGE_TRAIN))
        if not jobs:  # they go last, so that a pass that was cut short is done again
            draft.condition(ConditionType.RUNNING, False, Reason.CHILDREN_REMOVED)
    elif due is not None and not is_due:
        draft.look_again((due - draft.now).total_seconds())


def _removal_time(draft: Draft) -> datetime | None:
    """Read from the spec as it is now: whoever wants to keep the pods for longer can say so after the end."""
    spec = draft.observed.job.spec
    if spec is None or spec.ttl_seconds_after_finished is None:
        return None
    ends = (find_condition(draft.status.conditions, type_) for type_ in (ConditionType.COMPLETE, ConditionType.FAILED))
    times = [end.last_transition_time for end in ends if end is not None and end.status == "True"]
    return max(times) + timedelta(seconds=spec.ttl_seconds_after_finished) if times else None
