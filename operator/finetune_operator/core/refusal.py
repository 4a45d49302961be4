"""A child that the API server refuses to create: the user reads why in the status, and the pass is tried again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.constants import ConditionType, Reason
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import JobObject, Observed


def status_of_refusal(job: JobObject, child: str, words: str, now: datetime) -> dict[str, Any] | None:
    """The status to write instead of the one that was decided; None: it says so already.

    Nothing is final: a quota is raised, a policy is mended, a namesake is deleted.
    """
    draft = Draft(Observed(job=job), now)
    message = f"{child} cannot be created: {words}. It is tried again"
    draft.condition(ConditionType.STALLED, False, Reason.CHILD_REFUSED)
    draft.condition(ConditionType.RECONCILING, True, Reason.CHILD_REFUSED, message)
    draft.say(draft.status.phase or "Pending", message)
    return draft.actions().status
