"""The loop's one decision: given what is, what shall be done? Read this page first.

    watch event ─> wake(key) ─> gather ─> reconcile(observed, now) -> Actions ─> execute ─> look again

``reconcile`` is pure: no client, no clock, nothing remembered between passes. Everything it knows comes from fresh
reads, so a crash at any moment costs nothing but the pass.
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.core import acceptance, attempts, finished, preparation, run_change, suspend
from finetune_operator.core.actions import Actions
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import Observed


def reconcile(observed: Observed, now: datetime) -> Actions:
    """Decide one pass for one FineTuneJob."""
    # The owner references take the children along; nothing is left to decide.
    if observed.job.is_being_deleted:
        return Actions()

    draft = Draft(observed, now)

    # A changed runId gives the old run up: its children go first, then everything starts anew.
    if run_change.is_run_superseded(draft):
        run_change.give_up_old_run(draft)

    # A finished run stays as it is until it is deleted or gets a new runId; it holds no nodes.
    elif draft.is_finished:
        finished.release_nodes(draft)

    # Nobody can tell what the run was accepted with; a person has to.
    elif observed.snapshot_error:
        acceptance.report_unreadable_snapshot(draft)

    # Nothing starts before every check passes; then the snapshot fixes what this run is.
    elif observed.snapshot is None or draft.status.run is None:
        acceptance.accept(draft)

    # Suspended means no pods: the attempt saves, ends and is not counted.
    elif suspend.is_suspended(draft):
        suspend.stop_everything(draft)

    # The CPU stage comes first; no GPU is held while the data is wrong.
    elif draft.status.facts is None:
        preparation.prepare(draft, observed.snapshot)

    # Gang after gang, each resuming where the last one saved, until one ends well.
    else:
        attempts.advance(draft, observed.snapshot, draft.status.facts)

    return draft.actions()
