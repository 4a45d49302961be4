"""Where the next attempt goes, and when a gang has waited long enough for nodes.

A gang runs with all its pods or not at all. One that does not find all its nodes within ``scheduleTimeoutSeconds`` is
removed and tried on the next placement; after the last one the first is tried again, a while later. Two gangs that each
hold half of a pool would wait for each other until then, so where no queue admits whole gangs, only one at a time waits
for the nodes of a pool. A placement that was interrupted ``maxInterruptions`` times is left for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_operator.api.status import PlacementStatus
from finetune_operator.constants import QUEUE_LABEL_PREFIX, Cause
from finetune_operator.core.backoff import doubled
from finetune_operator.core.observed import ChildJob, JobObject, Pod
from finetune_operator.core.planner.placement import Candidate

INTERRUPTIONS = frozenset({Cause.NODE_LOST, Cause.PREEMPTED, Cause.NO_DEVICE, Cause.UNKNOWN})
"""What counts against ``maxInterruptions``."""

FIRST_PAUSE_SECONDS = 10.0
MAX_PAUSE_SECONDS = 300.0


def after_end(state: PlacementStatus, cause: str, candidates: Sequence[Candidate]) -> PlacementStatus:
    """The placement of the next attempt, after one ended with ``cause``; one that found its nodes ends the search."""
    if cause == Cause.NOT_SCHEDULED:
        return move_on(state, candidates)
    state = state.model_copy(update={"rounds": 0})
    if cause not in INTERRUPTIONS:
        return state
    interruptions = state.interruptions + 1
    limit = candidates[state.candidate % len(candidates)].placement.max_interruptions
    if limit is not None and interruptions >= limit and len(candidates) > 1:
        return PlacementStatus(candidate=(state.candidate + 1) % len(candidates))
    return state.model_copy(update={"interruptions": interruptions})


def move_on(state: PlacementStatus, candidates: Sequence[Candidate]) -> PlacementStatus:
    """The next placement, because this one had no room; the first again after the last."""
    following = (state.candidate + 1) % len(candidates)
    return PlacementStatus(candidate=following, rounds=state.rounds + (following == 0))


def pause(state: PlacementStatus, jitter: float) -> float:
    """Seconds until the next placement is tried: none, or a while when all of them have been tried in vain.

    A half to one and a half of 10, 20, 40 … 300 s: gangs that got in each other's way must not come back together.
    """
    if state.candidate != 0:
        return 0.0
    return doubled(FIRST_PAUSE_SECONDS, state.rounds, MAX_PAUSE_SECONDS) * (0.5 + jitter)


def is_placed(pods: Sequence[Pod], nodes: int) -> bool:
    """Whether every pod of the gang has its node."""
    return len(pods) == nodes and all(pod.node for pod in pods)


def begin_of(owner: JobObject, job: ChildJob) -> datetime | None:
    """Since when a gang waits for nodes or holds them: the time in a queue does not count.

    None: its queue has not let it go, or the Job controller has not begun with it since.
    """
    if job.is_suspended:
        return None
    return job.start_time or (None if is_queued(owner) else job.creation_time)


def schedule_deadline(begin: datetime, candidate: Candidate) -> datetime:
    """Until when a gang may wait for nodes."""
    return begin + timedelta(seconds=candidate.placement.schedule_timeout_seconds)


def is_queued(owner: JobObject) -> bool:
    """Whether a queue decides when the job's gangs start."""
    return any(label.startswith(QUEUE_LABEL_PREFIX) for label in owner.labels)


def pool_key(job: JobObject, candidate: Candidate) -> str | None:
    """What gangs must not wait for at the same time: the same nodes.

    Two runtimes may offer the same nodes; without a selector a pool can mean any. None: nothing stands in its way. A
    single pod cannot hold a half of anything, and a queue admits whole gangs.
    """
    if candidate.placement.nodes == 1 or is_queued(job):
        return None
    return json.dumps(candidate.pool.node_selector, sort_keys=True)
