"""From a stored spec to an accepted run: checks, then the snapshot.

A snapshot that is there already is taken over: an earlier pass wrote it and did not get to record it. One that was
lost (somebody deleted the ConfigMap) is taken again; when the spec has changed since, ``run_change`` gave the run up.
"""

from __future__ import annotations

from finetune_operator.api.status import PlacementStatus, RunStatus
from finetune_operator.builders.names import snapshot_name
from finetune_operator.builders.snapshot import build_snapshot
from finetune_operator.constants import ConditionType, Reason
from finetune_operator.core.checks import RECHECK_SECONDS, Violation, first_violation
from finetune_operator.core.draft import Draft
from finetune_operator.core.planner.plan import plan_attempt
from finetune_operator.core.snapshot import Snapshot, take_snapshot

_TOTALS_OF_A_RUN = ("failures", "without_progress", "checkpoint_step", "replans", "active_seconds")
"""They begin anew with every run; the others sum up all runs of the FineTuneJob."""


def accept(draft: Draft) -> Snapshot | None:
    """The snapshot of the accepted run. Before there is one, check the spec and take it, or say what is missing."""
    observed = draft.observed
    if observed.snapshot is not None:
        if draft.status.run is None:
            _record(draft, observed.snapshot)
            draft.look_again(0)  # at whether the spec still asks for it
        return observed.snapshot
    violation = first_violation(observed)
    if violation is not None:
        _refuse(draft, violation)
        return None
    spec, runtime = observed.job.spec, observed.runtime
    if spec is None or runtime is None:
        raise AssertionError("the checks let a job without spec or runtime pass")
    snapshot = take_snapshot(spec, runtime)
    draft.create(build_snapshot(observed.job, snapshot))
    _record(draft, snapshot)
    return snapshot


def report_unreadable_snapshot(draft: Draft) -> None:
    """Touch nothing: what the run was accepted with is not known, but its pods are, and may be doing well."""
    name = snapshot_name(draft.observed.job.name)
    error = draft.observed.snapshot_error
    remedy = (
        "restore it, or use the operator's version that wrote it, or delete it: with an unchanged spec the run goes "
        "on, else it starts anew"
    )
    message = f"ConfigMap {name} cannot be read ({error}); {remedy}"
    draft.condition(ConditionType.RECONCILING, False, Reason.SNAPSHOT_UNREADABLE)
    if draft.condition(ConditionType.STALLED, True, Reason.SNAPSHOT_UNREADABLE, message):
        text = f"left everything as it was: ConfigMap {name} could not be read ({error}); {remedy}"
        draft.event(Reason.SNAPSHOT_UNREADABLE, text, warning=True)
    draft.say(draft.status.phase or "Pending", message)
    draft.look_again(RECHECK_SECONDS)


def _refuse(draft: Draft, violation: Violation) -> None:
    if draft.condition(ConditionType.ACCEPTED, False, violation.reason, violation.message):
        draft.event(violation.reason, f"did not accept the job: {violation.message}", warning=True)
    draft.condition(ConditionType.RECONCILING, not violation.stalled, violation.reason, violation.message)
    draft.condition(ConditionType.STALLED, violation.stalled, violation.reason, violation.message)
    draft.say("Pending", violation.message)
    draft.look_again(RECHECK_SECONDS)


def _record(draft: Draft, snapshot: Snapshot) -> None:
    if draft.status.run is None:
        draft.update(
            run=RunStatus(
                id=snapshot.spec.run_id,
                digest=snapshot.digest,
                first_attempt=draft.status.totals.attempts + 1,
                accepted_time=draft.now,
            ),
            facts=None,
            plan=plan_attempt(snapshot, None).to_status(snapshot),
            progress=None,
            checkpoint=None,
            result=None,
            placement=PlacementStatus(),
            totals=draft.status.totals.model_copy(update=dict.fromkeys(_TOTALS_OF_A_RUN, 0)),
        )
    draft.condition(ConditionType.ACCEPTED, True, Reason.ACCEPTED)
    draft.condition(ConditionType.STALLED, False, Reason.ACCEPTED)
    draft.condition(ConditionType.RUNNING, False, Reason.PREPARING)
    draft.condition(ConditionType.SPEC_DRIFTED, False, Reason.AS_ACCEPTED)
    draft.condition(ConditionType.COMPLETE, False, Reason.PREPARING)
    draft.condition(ConditionType.FAILED, False, Reason.PREPARING)
