"""Which pod ended an attempt, and why.

The first failure kills the gang; what comes after it (exit 143, 76, "connection closed") are victims and never a cause.
Evidence is conclusive when it names a cause by itself: a disruption condition or one of our exit codes. Anything
else is given ``SETTLE_SECONDS`` for better evidence to appear, say the loss of the node that broke the connection.
Missing information is Unknown, never a reason to blame the job. The table is design.md's, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from finetune_operator.constants import Cause
from finetune_operator.core.memory_picture import describe_memory
from finetune_operator.core.observed import ChildJob, NodeState, Pod
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import TrainTermination

SETTLE_SECONDS = 90.0

_BY_EXIT_CODE = {
    ExitCode.CONFIG: Cause.USER_ERROR,
    ExitCode.DATA: Cause.USER_ERROR,
    ExitCode.PREEMPTED: Cause.PREEMPTED,
    ExitCode.NO_DEVICE: Cause.NO_DEVICE,
    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    ExitCode.HANG: Cause.HANG,
    ExitCode.NON_FINITE: Cause.APPLICATION,
}
_VICTIM_CODES = {ExitCode.PEER_LOST, 143}
_SIGKILL = 137


@dataclass(frozen=True)
class Verdict:
    """The end of an attempt."""

    cause: str
    message: str
    exit_code: int | None = None
    node: str = ""
    rank: int | None = None
    """Index of the pod in the gang."""
    termination: TrainTermination | None = None


@dataclass(frozen=True)
class Pending:
    """Something is wrong, but better evidence may come."""

    recheck_after: float
    message: str
    """What was seen so far."""


def blame(
    job: ChildJob,
    pods: Sequence[Pod],
    nodes: Mapping[str, NodeState],
    *,
    is_spot: bool,
    incomplete_since: datetime,
    now: datetime,
) -> Verdict | Pending | None:
    """Judge a gang that has not succeeded; None: nothing is wrong with it.

    ``incomplete_since`` is when it was first seen that not all pods run. It dates what leaves no time behind, such as a
    pod that vanished.
    """
    conclusive = [
        (time, verdict) for pod in pods if (found := _conclusive(pod, nodes, is_spot, now)) for time, verdict in [found]
    ]
    if conclusive:
        return min(conclusive, key=lambda item: item[0])[1]
    failed = [pod for pod in pods if pod.phase == "Failed"]
    vanished = job.failed_indexes - {pod.index for pod in pods}
    if not failed and not vanished and not job.is_failed:
        return None
    live = [pod for pod in pods if not pod.is_terminal]
    first_end = min((pod.finished_time for pod in failed if pod.finished_time), default=incomplete_since)
    settled_at = first_end + timedelta(seconds=SETTLE_SECONDS)
    if live and now < settled_at:
        return Pending((settled_at - now).total_seconds(), _describe(failed, vanished))
    return _best_guess(failed, vanished)


def termination_of(pod: Pod) -> TrainTermination | None:
    """The pod's last word, when it left a valid one."""
    try:
        return TrainTermination.model_validate_json(pod.termination_message)
    except ValidationError:
        return None


def _conclusive(
    pod: Pod, nodes: Mapping[str, NodeState], is_spot: bool, now: datetime
) -> tuple[datetime, Verdict] | None:
    """The time and verdict of a pod whose evidence names a cause by itself."""
    lost = Cause.PREEMPTED if is_spot else Cause.NODE_LOST
    if pod.disruption_reason:
        cause = lost if _node_is_lost(pod, nodes) else Cause.PREEMPTED
        text = f"{pod.disruption_reason}: {pod.disruption_message}".rstrip(": ")
        return pod.disruption_time or now, _verdict(pod, cause, text)
    if pod.deletion_time is not None and pod.deletion_time <= now and not pod.is_terminal:
        text = f"pod {pod.name} did not end within its grace period: its node does not answer"
        return pod.deletion_time, _verdict(pod, lost, text)
    if pod.phase != "Failed":
        return None
    time = pod.finished_time or now
    if pod.reason == "Terminated":
        # the kubelet's words for a node that is shut down in an orderly way
        return time, _verdict(pod, Cause.PREEMPTED, pod.message or "the node is being shut down")
    if pod.terminated_reason == "OOMKilled":
        return time, _verdict(pod, Cause.OUT_OF_MEMORY, "the container exceeded its memory limit (OOMKilled)")
    code = _code(pod)
    cause_of_code = _BY_EXIT_CODE.get(code) if code is not None else None
    return (time, _verdict(pod, cause_of_code, "")) if cause_of_code else None


def _node_is_lost(pod: Pod, nodes: Mapping[str, NodeState]) -> bool:
    if pod.disruption_reason == "DeletionByPodGC":
        return True
    node = nodes.get(pod.node)
    return pod.disruption_reason == "DeletionByTaintManager" and node is not None and not (node.exists and node.ready)


def _best_guess(failed: Sequence[Pod], vanished: frozenset[int]) -> Verdict:
    """What is left when nothing is conclusive, and nothing better can come."""
    own_failures = [
        pod for pod in failed if pod.exit_code not in (None, _SIGKILL) and pod.exit_code not in _VICTIM_CODES
    ]
    if own_failures:
        return _verdict(_earliest(own_failures), Cause.APPLICATION, "")
    if failed:
        first = _earliest(failed)
        peer = termination_of(first)
        detail = f": {peer.message}" if peer and peer.message else ""
        return _verdict(first, Cause.UNKNOWN, f"pod {first.name} ended without naming a cause{detail}")
    return Verdict(cause=Cause.UNKNOWN, message=_describe(failed, vanished))


def _describe(failed: Sequence[Pod], vanished: frozenset[int]) -> str:
    """What can be said without a judgement."""
    if failed:
        first = _earliest(failed)
        return f"pod {first.name} ended" + (f" with exit code {first.exit_code}" if first.exit_code is not None else "")
    names = ", ".join(str(index) for index in sorted(vanished)) or "all"
    return f"pods vanished before their end was seen (index {names})"


def _earliest(pods: Sequence[Pod]) -> Pod:
    return min(pods, key=lambda pod: (pod.finished_time is None, pod.finished_time))


def _verdict(pod: Pod, cause: str, message: str) -> Verdict:
    termination = termination_of(pod)
    if not message and termination is not None:
        message = termination.message or termination.cause
    if not message:
        message = f"exit code {pod.exit_code}"
    if cause == Cause.OUT_OF_MEMORY and termination is not None and termination.memory is not None:
        message = f"{describe_memory(termination.memory)}; {message}"
    return Verdict(
        cause=cause,
        message=message,
        exit_code=pod.exit_code,
        node=pod.node,
        rank=pod.index,
        termination=termination,
    )


def _code(pod: Pod) -> ExitCode | None:
    try:
        return ExitCode(pod.exit_code) if pod.exit_code is not None else None
    except ValueError:
        return None
