"""A new ``spec.runId``, or any edit with ``onChange: Restart``, starts a new run: the old one is given up, its children
are removed, then it begins anew. Edits of fields that act at once (``drift.LIVE_FIELDS``) do not.

The same happens when the snapshot of an unfinished run was lost and the spec has changed since: nobody knows any more
what was accepted, and attempts of two different runs must not be taken for one.
Attempt numbers go on counting, so the names of the new run's children never meet those of the old one.
"""

from __future__ import annotations

from finetune_operator.api.conditions import find_condition
from finetune_operator.builders.names import snapshot_name
from finetune_operator.constants import STAGE_PREPARE, STAGE_TRAIN, Cause, ConditionType, Reason
from finetune_operator.core.actions import Deletion, Sweep
from finetune_operator.core.attempt_record import end_attempt, live_attempt, record_what_was_not
from finetune_operator.core.blame import Verdict
from finetune_operator.core.draft import Draft
from finetune_operator.core.drift import differences
from finetune_operator.core.snapshot import run_digest


def is_run_superseded(draft: Draft) -> bool:
    """Whether the run that was accepted is not the one that the spec asks for now."""
    run, spec, snapshot = draft.status.run, draft.observed.job.spec, draft.observed.snapshot
    if run is None or spec is None:
        return False
    reconciling = find_condition(draft.status.conditions, ConditionType.RECONCILING)
    if reconciling is not None and reconciling.reason == Reason.RESTARTING:
        return True  # its end has begun and is not undone by going back to the old runId
    if spec.on_change == "Restart" and snapshot is not None and differences(snapshot.spec, spec):
        return True
    if run.id != spec.run_id or draft.is_finished or draft.observed.snapshot_error:
        return run.id != spec.run_id
    return run.digest != (snapshot.digest if snapshot is not None else run_digest(spec))


def give_up_old_run(draft: Draft) -> None:
    """Remove the old run's children; once they are gone, forget the run."""
    observed = draft.observed
    record_what_was_not(draft)
    if live_attempt(draft.status) is not None:
        end_attempt(draft, Verdict(Cause.SUPERSEDED, "the run was given up for a new one"))
    draft.delete_all_jobs()
    busy = [pod.name for pod in observed.pods if not pod.is_gone_by(draft.now)]
    for type_ in (ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.STALLED, ConditionType.RUNNING):
        draft.condition(type_, False, Reason.RESTARTING)
    draft.condition(ConditionType.RECONCILING, True, Reason.RESTARTING, "the old run's children are being removed")
    draft.say(
        "Pending",
        f"a new run starts: {len(observed.jobs)} Jobs and {len(busy)} pods of the old one are left",
    )
    if observed.jobs or busy:
        draft.look_again(1)
        return
    draft.sweep(Sweep(stage=STAGE_PREPARE))
    draft.sweep(Sweep(stage=STAGE_TRAIN))
    if observed.snapshot is not None or observed.snapshot_error:
        draft.delete(Deletion("ConfigMap", snapshot_name(observed.job.name)))
        draft.look_again(0)
        return
    draft.update(run=None, facts=None, plan=None, progress=None, checkpoint=None, result=None)
    draft.look_again(0)
