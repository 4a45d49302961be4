"""The loop's one decision: given what is, what shall be done? Read this page first.

    watch event ─> wake(key) ─> gather ─> reconcile(observed, now) -> Actions ─> execute ─> look again

``reconcile`` is pure: no client, no clock, nothing remembered between passes. Everything it knows comes from fresh
reads, so a crash at any moment costs nothing but the pass.
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.core import (
    acceptance,
    accounting,
    attempts,
    drift,
    finished,
    preparation,
    progress,
    run_change,
    suspend,
)
from finetune_operator.core.actions import Actions
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import Observed


def reconcile(observed: Observed, now: datetime) -> Actions:
    """Decide one pass for one FineTuneJob."""
    # The owner references take the children along; nothing is left to decide.
    if observed.job.is_being_deleted:
        return Actions()

    draft = Draft(observed, now)
    drift.report(draft)
    progress.take_late_words(draft)
    accounting.settle(draft)  # an attempt whose pods are gone now
    _advance(draft)
    accounting.settle(draft)  # one that ended in this pass and has no pods to wait for
    return draft.actions()


def _advance(draft: Draft) -> None:
    observed = draft.observed

    # A changed runId, or an edit with onChange: Restart, gives the old run up: its children go first, then everything
    # starts anew.
    if run_change.is_run_superseded(draft):
        run_change.give_up_old_run(draft)
        return

    # A finished run stays as it is until it is deleted or given up for a new one; it holds no nodes.
    if draft.is_finished:
        finished.tidy_up(draft)
        return

    # Nobody can tell what the run was accepted with; a person has to.
    if observed.snapshot_error:
        acceptance.report_unreadable_snapshot(draft)
        return

    # Nothing starts before every check passes; then the snapshot fixes what this run is.
    snapshot = acceptance.accept(draft)
    if snapshot is None:
        return

    # Suspended means no pods: the attempt saves, ends and is not counted.
    if suspend.is_suspended(draft):
        suspend.stop_everything(draft)
        return

    # The CPU stage comes first; no GPU is held while the data is wrong.
    facts = preparation.prepare(draft, snapshot)
    if facts is None:
        return

    # Gang after gang, each resuming where the last one saved, until one ends well.
    attempts.advance(draft, snapshot, facts)
