"""Progress from the log of rank 0 and from pods' last words into the status: bounded, monotonic, and never trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from finetune_operator.api.status import CheckpointStatus, ProgressStatus
from finetune_operator.builders.locations import public_uri
from finetune_operator.core.attempt_record import change_attempt, everybody, last_attempt, note_saved
from finetune_operator.core.blame import termination_of
from finetune_operator.core.draft import Draft
from finetune_operator.core.observed import Pod, parse_time
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import CheckpointRef, Progress, PublishedResult

_BEFORE_RESUME = frozenset({"rendezvous", "load"})
_CENTURY = 100 * 365 * 86400.0


def take_progress(draft: Draft, snapshot: Snapshot, attempt: int) -> None:
    """Take over what the live attempt's log said last."""
    log = draft.observed.log
    if log is None or log.pod_uid not in {pod.uid for pod in draft.observed.attempt_pods(attempt)}:
        return
    # Until it has looked for a checkpoint, a gang counts from 0 although the run is further.
    if log.progress is not None and log.phase not in _BEFORE_RESUME:
        draft.update(progress=_to_status(log.progress, log.phase or _known_phase(draft)))
        change_attempt(draft, step_to=log.progress.step)
        if log.progress.resumed_from_step is not None:
            change_attempt(draft, step_from=log.progress.resumed_from_step)
        record_checkpoint(draft, snapshot, log.progress.checkpoint)
    elif draft.status.progress is not None and log.phase:
        draft.update(progress=draft.status.progress.model_copy(update={"phase": log.phase}))


def finished_progress(draft: Draft, result: PublishedResult) -> ProgressStatus:
    """The progress of a run that is over."""
    total = (draft.status.plan.total_steps if draft.status.plan else None) or 0
    last = draft.status.progress or ProgressStatus()
    return ProgressStatus(
        progress_percentage=100,
        step=total,
        total_steps=total,
        steps=f"{total}/{total}",
        loss=_rounded(result.metrics.get("trainLoss"), 4),
        eval_loss=_rounded(result.metrics.get("evalLoss"), 4),
        strategy=last.strategy,
        warning=last.warning,
        estimated_remaining_seconds=0,
        last_updated_time=draft.now,
    )


def take_last_words(draft: Draft, pods: Sequence[Pod]) -> None:
    """What any pod of the newest attempt names: where it started, its furthest step and checkpoint, the rank it
    lost, how the model was spread and what went wrong.

    Rank 0 knows the most, and is seldom the one to blame. A short attempt is over before its log is read.
    """
    snapshot = draft.observed.snapshot
    for pod in pods:
        words = termination_of(pod) if pod.is_terminal else None
        if words is None:
            continue
        if pod.exit_code == ExitCode.PEER_LOST:
            _record_lost_rank(draft, words.rank)
        if words.resumed_from_step is not None:
            change_attempt(draft, step_from=words.resumed_from_step)
        if words.step is not None and words.step > (draft.status.attempts[-1].step_to or 0):
            change_attempt(draft, step_to=words.step)
        if words.strategy and draft.status.progress is not None:
            told = {"strategy": words.strategy, "warning": words.warning or ""}
            draft.update(progress=draft.status.progress.model_copy(update=told))
        if snapshot is not None:
            record_checkpoint(draft, snapshot, words.checkpoint)


def take_late_words(draft: Draft) -> None:
    """The same of an attempt that was interrupted: a disruption is recorded before the pods have saved and ended."""
    last = last_attempt(draft.status)
    if last is None or not last.cause:
        return
    pods = everybody(draft, last.number)
    blamed = next((pod for pod in pods if pod.index == last.rank and pod.exit_code is not None), None)
    if blamed is not None and last.exit_code is None:
        change_attempt(draft, exit_code=blamed.exit_code)
    take_last_words(draft, pods)
    note_saved(draft)


def _record_lost_rank(draft: Draft, rank: int | None) -> None:
    """The first one named that the gang has."""
    plan = draft.status.plan
    if plan is None or rank is None or draft.status.attempts[-1].lost_rank is not None:
        return
    if 0 <= rank < plan.nodes * plan.gpus_per_node:
        change_attempt(draft, lost_rank=rank)


def record_checkpoint(draft: Draft, snapshot: Snapshot, checkpoint: CheckpointRef | None) -> None:
    """The newest checkpoint; an older report never overwrites a newer one."""
    known = draft.status.checkpoint
    if checkpoint is None or (known is not None and known.step >= checkpoint.step):
        return
    draft.update(
        checkpoint=CheckpointStatus(
            step=checkpoint.step, uri=public_uri(snapshot, checkpoint.uri), time=_time(checkpoint.time)
        )
    )


def _known_phase(draft: Draft) -> str:
    """The line that names the phase is written once and soon lies above the part of the log that is read."""
    return draft.status.progress.phase if draft.status.progress else ""


def _to_status(line: Progress, phase: str) -> ProgressStatus:
    total = max(line.total_steps, 1)
    return ProgressStatus(
        progress_percentage=max(0, min(100, 100 * line.step // total)),
        step=line.step,
        total_steps=line.total_steps,
        steps=f"{line.step}/{line.total_steps}",
        epoch=_rounded(line.epoch, 3),
        phase=phase,
        strategy=line.strategy,
        warning=line.warning,
        loss=_rounded(line.loss, 4),
        eval_loss=_rounded(line.eval_loss, 4),
        learning_rate=_finite(line.learning_rate),
        tokens_per_second=_rounded(line.tokens_per_second, 1),
        estimated_remaining_seconds=_seconds(line.estimated_remaining_seconds),
        last_updated_time=_time(line.time),
    )


def _finite(value: float | None) -> float | None:
    """JSON has no NaN; neither has a status."""
    return value if value is not None and math.isfinite(value) else None


def _rounded(value: float | None, digits: int) -> float | None:
    value = _finite(value)
    return None if value is None else round(value, digits)


def _seconds(value: float | None) -> int | None:
    value = _finite(value)
    return int(value) if value is not None and 0 <= value < _CENTURY else None


def _time(text: str) -> datetime | None:
    """With a time zone, or none: the API server refuses others."""
    try:
        time = parse_time(text)
        return time.astimezone(UTC).replace(microsecond=0) if time is not None and time.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
