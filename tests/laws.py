"""What must hold in the simulated cluster, whatever happens to a job.

A law names itself when it is broken, so that a test can tell which one caught a mistake. It is judged by what the API
server would show, and never by the core's own opinion of it.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

from finetune_operator.api.conditions import is_true
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.constants import Cause, Reason
from kstatus import is_sound
from openapi import status_violations

Json = dict[str, Any]

MAX_STATUS_BYTES = 32 * 1024
DISRUPTIONS = frozenset({Cause.NODE_LOST, Cause.PREEMPTED, Cause.NO_DEVICE, Cause.CONTRACT_SKEW, Cause.UNKNOWN})
FAILURES = frozenset({Cause.APPLICATION, Cause.HANG})
"""What counts against ``spec.backoffLimit`` in any case."""


class Law(StrEnum):
    """Words that an AssertionError begins with."""

    ONE_GANG = "two gangs at once"
    EVIDENCE = "no evidence"
    FORWARD = "something went backwards"
    BOUNDED = "something has no bounds"
    CALM = "no pause"
    ONE_RUN = "two runs are mixed up"
    SOUND = "the status contradicts itself"
    STOPPED = "what is suspended runs on"
    REST = "no rest"
    FOLLOWED = "nobody looks again"


def size_of(status: Json) -> int:
    """Bytes as the API server stores it."""
    return len(json.dumps(status, ensure_ascii=False).encode())


def check_size(raw: Json, *, is_schema_checked: bool) -> None:
    """A status fits, as a whole and in each of its fields."""
    assert size_of(raw) < MAX_STATUS_BYTES, f"{Law.BOUNDED}: a status of {size_of(raw)} bytes"
    refused = status_violations(raw) if is_schema_checked else []
    assert not refused, f"{Law.BOUNDED}: the API server refuses {refused}"


def check_conditions(new: FineTuneJobStatus) -> None:
    """No two of them contradict each other."""
    assert is_sound(new), f"{Law.SOUND}: {[(each.type, each.status) for each in new.conditions]}"


def check_forward(old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
    """What was counted, saved or ended stays so: sums for ever, the others for as long as the run is the same."""
    _grows("observedGeneration", old.observed_generation, new.observed_generation)
    for name in ("attempts", "gpu_seconds", "lost_gpu_seconds", "cost"):
        _grows(f"totals.{name}", getattr(old.totals, name), getattr(new.totals, name))
    for cause, count in old.totals.by_cause.items():
        _grows(f"totals.byCause.{cause}", count, new.totals.by_cause.get(cause, 0))

    numbers = [attempt.number for attempt in new.attempts]
    assert numbers == sorted(set(numbers)), f"{Law.FORWARD}: attempts {numbers}"
    assert numbers[-1:] in ([], [new.totals.attempts]), f"{Law.FORWARD}: {new.totals.attempts} attempts, {numbers}"
    listed = {attempt.number: (attempt.end_time, attempt.cause) for attempt in new.attempts}
    for was in old.attempts:
        end = (was.end_time, was.cause)
        is_kept = was.end_time is None or listed.get(was.number, end) == end
        assert is_kept, f"{Law.FORWARD}: the end of attempt {was.number}, {end} -> {listed[was.number]}"

    if old.run is None or new.run is None or old.run.digest != new.run.digest:
        return
    _grows("checkpoint.step", old.checkpoint and old.checkpoint.step, new.checkpoint and new.checkpoint.step)
    for name in ("failures", "replans", "active_seconds", "checkpoint_step"):
        _grows(f"totals.{name}", getattr(old.totals, name), getattr(new.totals, name))
    for type_ in ("Complete", "Failed"):
        is_kept = not is_true(old.conditions, type_) or is_true(new.conditions, type_)
        is_given_up = any((each.type, each.reason) == (type_, Reason.RESTARTING) for each in new.conditions)
        assert is_kept or is_given_up, f"{Law.FORWARD}: the run is no longer {type_}"


def _grows(name: str, old: float | None, new: float | None) -> None:
    assert (new or 0) >= (old or 0), f"{Law.FORWARD}: {name} {old} -> {new}"


def check_follows(status: FineTuneJobStatus, number: int, run: str) -> None:
    """A gang is created only when the end of the one before it is recorded, and its cause as well."""
    assert number > status.totals.attempts, f"{Law.FORWARD}: attempt {number} after {status.totals.attempts}"
    last = status.attempts[-1] if status.attempts else None
    if last is None:
        return
    assert last.end_time is not None, f"{Law.EVIDENCE}: attempt {number} follows one whose end is not recorded"
    is_retry = last.run == run
    assert last.cause or not is_retry, f"{Law.EVIDENCE}: attempt {number} follows one that ended without a cause"
