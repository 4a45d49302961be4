"""``spec.suspend``: no pods while it is true; the attempt saves, ends, and is not counted.

The Job's own ``suspend`` field belongs to queues such as Kueue and is never touched.
"""

from __future__ import annotations

from finetune_operator.constants import Cause, Reason
from finetune_operator.core.attempt_record import (
    end_attempt,
    everybody,
    live_attempt,
    record_what_was_not,
)
from finetune_operator.core.blame import Verdict
from finetune_operator.core.draft import Draft
from finetune_operator.core.progress import take_last_words


def is_suspended(draft: Draft) -> bool:
    """Whether to stop. A gang that has just ended well has nothing to stop: its result is taken over first.

    ``suspend`` is one of the four fields (``drift.LIVE_FIELDS``) that are read from the spec as it is now and not as it
    was accepted.
    """
    spec, live = draft.observed.job.spec, live_attempt(draft.status)
    if spec is None or not spec.suspend:
        return False
    nodes = draft.status.plan.nodes if draft.status.plan is not None else 0
    return live is None or not draft.observed.has_succeeded(live.number, nodes)


def stop_everything(draft: Draft) -> None:
    """Delete the Jobs of both stages; say so when their pods are gone."""
    observed = draft.observed
    record_what_was_not(draft)
    live = live_attempt(draft.status)
    if live is not None:
        take_last_words(draft, everybody(draft, live.number))
        end_attempt(draft, Verdict(Cause.SUSPENDED, "spec.suspend is true"))
        draft.event(Reason.SUSPENDED, "suspended the run and asked its pods to save a checkpoint and end")
    draft.update(placement=draft.status.placement.model_copy(update={"waiting_since": None}))
    draft.delete_all_jobs()
    busy = [pod for pod in observed.pods if not pod.is_gone_by(draft.now)]
    if busy:
        message = f"spec.suspend is true: {len(busy)} pods are saving and ending"
        draft.look_again(1)
    else:
        message = "spec.suspend is true; set it to false to resume from the newest checkpoint"
    draft.in_progress(Reason.SUSPENDED, message)
    draft.say("Suspended", message)
