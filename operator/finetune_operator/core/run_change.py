"""A new ``spec.runId`` starts a fresh run: the old run is given up, its children are removed, then it begins anew.

Attempt numbers go on counting, so the names of the new run's children never meet those of the old one.
"""

from __future__ import annotations

from finetune_operator.builders.names import snapshot_name
from finetune_operator.constants import Cause, ConditionType, Reason
from finetune_operator.core.actions import Deletion
from finetune_operator.core.attempt_record import end_attempt, live_attempt
from finetune_operator.core.blame import Verdict
from finetune_operator.core.draft import Draft


def is_run_superseded(draft: Draft) -> bool:
    """Whether the run that was accepted is not the one that the spec asks for now."""
    run, spec = draft.status.run, draft.observed.job.spec
    return run is not None and spec is not None and run.id != spec.run_id


def give_up_old_run(draft: Draft) -> None:
    """Remove the old run's children; once they are gone, forget the run."""
    observed = draft.observed
    if live_attempt(draft.status) is not None:
        end_attempt(draft, Verdict(Cause.SUPERSEDED, "spec.runId changed"))
    for job in observed.jobs:
        if not job.is_being_deleted:
            draft.delete(Deletion("Job", job.name, job.uid))
    busy = [pod.name for pod in observed.pods if not pod.is_gone_by(draft.now)]
    for type_ in (ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.STALLED, ConditionType.RUNNING):
        draft.condition(type_, False, Reason.RESTARTING)
    draft.condition(ConditionType.RECONCILING, True, Reason.RESTARTING, "the old run's children are being removed")
    draft.say(
        "Pending",
        f"spec.runId changed: {len(observed.jobs)} Jobs and {len(busy)} pods of the old run are left",
    )
    if observed.jobs or busy:
        draft.look_again(1)
        return
    if observed.snapshot is not None:
        draft.delete(Deletion("ConfigMap", snapshot_name(observed.job.name)))
        draft.look_again(0)
        return
    draft.update(run=None, facts=None, plan=None, progress=None, checkpoint=None, result=None)
    draft.look_again(0)
