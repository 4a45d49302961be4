"""What attempts cost: GPU time held, the part of it that was lost, and its price.

GPU time runs from a pod's binding to a node, which is when the GPUs are taken from others, until the pod is gone. Lost
is what an attempt held after its last checkpoint, or from its beginning when it saved none: the next attempt does that
again. An attempt that ended well, or was asked to stop and saved, lost nothing before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_operator.api.status import AttemptStatus, TotalsStatus
from finetune_operator.core.attempt_record import (
    add_active_seconds,
    change_attempt,
    end_of,
    everybody,
    last_attempt,
    note_times,
)
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import Pod

_HOUR = 3600.0


def settle(draft: Draft) -> None:
    """Add up the newest attempt, once its end is recorded and its pods are gone."""
    newest = last_attempt(draft.status)
    if newest is None or newest.end_time is None or newest.gpu_seconds is not None:
        return
    pods = everybody(draft, newest.number)
    if any(not pod.is_gone_by(draft.now) for pod in pods):
        return
    note_times(draft)
    gone = _gone(pods, newest.end_time)
    newest = draft.status.attempts[-1]
    held = max((gone - newest.bound_time).total_seconds(), 0.0) if newest.bound_time is not None else 0.0
    lost = _lost_seconds(draft, newest, gone, held)
    gpus = newest.bound_pods * _gpus_of_a_pod(draft)
    change_attempt(draft, gpu_seconds=round(gpus * held), lost_seconds=round(lost))
    draft.update(totals=_add(draft.status.totals, gpus * held, gpus * lost, _price(draft)))


def pause(draft: Draft) -> None:
    """A queue took its admission back: what was held so far is added up, and nothing counts until it is back."""
    newest = draft.status.attempts[-1]
    if newest.bound_time is not None:
        held = max((draft.now - newest.bound_time).total_seconds(), 0.0) * newest.bound_pods * _gpus_of_a_pod(draft)
        draft.update(totals=_add(draft.status.totals, held, 0.0, _price(draft)))
    add_active_seconds(draft, draft.now)
    if newest.start_time is not None or newest.bound_time is not None:
        change_attempt(draft, start_time=None, bound_time=None, bound_pods=0)


def _gone(pods: Sequence[Pod], end: datetime) -> datetime:
    """When the last pod ended; where one has not said so, when the end was seen."""
    known = [pod.finished_time for pod in pods if pod.node and pod.finished_time is not None]
    return end_of(pods) or max([end, *known])


def _gpus_of_a_pod(draft: Draft) -> int:
    return draft.status.plan.gpus_per_node if draft.status.plan is not None else 1


def _lost_seconds(draft: Draft, newest: AttemptStatus, gone: datetime, held: float) -> float:
    if not newest.cause:
        return 0.0
    saved = draft.status.checkpoint.time if draft.status.checkpoint is not None else None
    if saved is None or newest.bound_time is None or saved < newest.bound_time:
        return held
    return min(max((gone - saved).total_seconds(), 0.0), held)


def _price(draft: Draft) -> float | None:
    """Of one GPU for an hour, in the pool of the newest attempt."""
    snapshot, plan = draft.observed.snapshot, draft.status.plan
    if snapshot is None or plan is None:
        return None
    return next((pool.price_per_gpu_hour for pool in snapshot.runtime.pools if pool.name == plan.pool), None)


def _add(totals: TotalsStatus, gpu_seconds: float, lost: float, price: float | None) -> TotalsStatus:
    held, gone = totals.gpu_seconds + round(gpu_seconds), totals.lost_gpu_seconds + round(lost)
    cost = totals.cost
    if price is not None:
        cost = round((cost or 0.0) + gpu_seconds / _HOUR * price, 4)
    return totals.model_copy(
        update={
            "gpu_seconds": held,
            "lost_gpu_seconds": gone,
            "goodput_percent": round(100.0 * (held - gone) / held, 1) if held else None,
            "cost": cost,
        }
    )
