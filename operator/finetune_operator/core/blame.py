"""Which pod ended an attempt, and why.

The first failure kills the gang; what comes after it (exit 143, 76, "connection closed") are victims and never a cause.
Evidence is conclusive when it names a cause by itself: a disruption condition or one of our exit codes. Anything
else is given ``SETTLE_SECONDS`` for better evidence to appear, say the loss of the node that broke the connection.
Missing information is Unknown, never a reason to blame the job: only a pod that left last words of ours has failed by
its own doing. The table is design.md's, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
_SHUT_DOWN, _EVICTED, _OOM_KILLED = "Terminated", "Evicted", "OOMKilled"
_KUBELETS_WORDS = frozenset({_SHUT_DOWN, _EVICTED})
"""Reasons of a pod that name a cause."""
_NOBODY_KNOWS = frozenset({"ContainerStatusUnknown", "Unknown"})
"""What a kubelet or containerd reports of a container that was gone when it looked, e.g. after a reboot: 137 or 255."""
_NOT_OUR_EXIT = frozenset({"StartError", "ContainerCannotRun"}) | _NOBODY_KNOWS
"""The container never ran, or nobody knows: its exit code is the runtime's, e.g. 128."""


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


@dataclass(frozen=True)
class Gang:
    """One attempt's pods and what is known around them."""

    job: ChildJob | None
    """None: somebody deleted it."""
    pods: Sequence[Pod]
    """Those that the API server lists."""
    vanished: Sequence[Pod] = ()
    """Those that a watch showed and that are gone; their last words count as if they were there."""
    nodes: Mapping[str, NodeState] | None = None
    """Nodes of pods in doubt."""
    processes_per_node: int = 1
    is_spot: bool = False
    has_trained: bool = False
    """Whether an attempt of this run has completed a step before: then its configuration can work."""

    @property
    def everybody(self) -> Iterator[Pod]:
        """Pods that are there and pods that were."""
        yield from self.pods
        yield from self.vanished

    def lost(self, pod: Pod) -> str:
        """What the loss of the pod's node is called."""
        return Cause.PREEMPTED if self.is_spot or self.reclaim_taint(pod) else Cause.NODE_LOST

    def is_node_lost(self, pod: Pod) -> bool:
        """Whether the pod's node is known not to answer."""
        node = (self.nodes or {}).get(pod.node)
        return node is not None and node.is_lost

    def reclaim_taint(self, pod: Pod) -> str:
        """The taint that says that the pod's node is being taken away; empty: nothing is known of that."""
        node = (self.nodes or {}).get(pod.node)
        return node.reclaim_taint if node is not None else ""

    @property
    def missing_indexes(self) -> frozenset[int]:
        """Pods that failed or were seen, and are not there any more."""
        failed = self.job.failed_indexes if self.job is not None else frozenset()
        return (failed | {pod.index for pod in self.vanished}) - {pod.index for pod in self.pods}


def blame(gang: Gang, *, incomplete_since: datetime, now: datetime) -> Verdict | Pending | None:
    """Judge a gang that has not succeeded; None: nothing is wrong with it.

    ``incomplete_since`` is when it was first seen that not all pods run. It dates what leaves no time behind, such as a
    pod that vanished.
    """
    conclusive = conclusive_verdict(gang, now)
    if conclusive is not None:
        return conclusive
    failed = [pod for pod in gang.everybody if pod.phase == "Failed"]
    missing = gang.missing_indexes
    if not failed and not missing and not (gang.job is not None and gang.job.is_failed):
        return None
    silent = _silent_pod(gang, failed)
    if silent is not None and (silent.is_vanished or gang.is_node_lost(silent)):
        return _verdict(silent, gang.lost(silent), _describe_silence(silent, gang))
    live = [pod for pod in gang.pods if not pod.is_terminal]
    first_end = min((pod.finished_time for pod in failed if pod.finished_time), default=incomplete_since)
    settled_at = first_end + timedelta(seconds=SETTLE_SECONDS)
    if live and now < settled_at:
        return Pending((settled_at - now).total_seconds(), _describe(failed, missing))
    if silent is not None:
        return _verdict(silent, gang.lost(silent), _describe_silence(silent, gang))
    return _best_guess(failed, missing, gang)


def conclusive_verdict(gang: Gang, now: datetime) -> Verdict | None:
    """The earliest evidence that names a cause by itself; that a rank hung may be what another pod's end did to it."""
    found = [each for pod in gang.everybody if (each := _conclusive(pod, gang, now)) is not None]
    return min(found, key=lambda item: (item[1].cause == Cause.HANG, item[0]))[1] if found else None


def termination_of(pod: Pod) -> TrainTermination | None:
    """The pod's last word, when it left a valid one."""
    try:
        return TrainTermination.model_validate_json(pod.termination_message)
    except ValidationError:
        return None


def ended_without_a_word(pod: Pod) -> bool:
    """Whether the pod was killed or got lost, and nothing of its own says why: its node may know."""
    if pod.phase != "Failed" or pod.disruption_reason or pod.reason in _KUBELETS_WORDS:
        return False
    is_killed = pod.exit_code in (None, _SIGKILL) and pod.terminated_reason != _OOM_KILLED
    return (is_killed or pod.terminated_reason in _NOBODY_KNOWS) and termination_of(pod) is None


# --- evidence that names a cause by itself ------------------------------------------------------------------------


def _conclusive(pod: Pod, gang: Gang, now: datetime) -> tuple[datetime, Verdict] | None:
    """The time and verdict of a pod whose evidence names a cause by itself."""
    if pod.disruption_reason:
        cause = gang.lost(pod) if _is_disrupted_with_its_node(pod, gang) else Cause.PREEMPTED
        text = f"{pod.disruption_reason}: {pod.disruption_message}".rstrip(": ")
        return pod.disruption_time or now, _verdict(pod, cause, text)
    if pod.phase == "Failed":
        return _conclusive_end(pod, gang, pod.finished_time or now)
    if pod.is_terminal:
        return None
    if (pod.is_vanished or pod.deletion_time is not None) and gang.reclaim_taint(pod):
        return min(pod.deletion_time or now, now), _reclaimed(pod, gang)
    if pod.is_vanished:
        if not gang.is_node_lost(pod):
            return None
        text = f"pod {pod.name} vanished with its node {pod.node}"
        return pod.deletion_time or now, _verdict(pod, gang.lost(pod), text)
    if pod.deletion_time is not None and pod.deletion_time <= now:
        if not pod.node:
            text = f"pod {pod.name} was deleted before it had a node"
            return pod.deletion_time, _verdict(pod, Cause.PREEMPTED, text)
        text = f"pod {pod.name} did not end within its grace period: its node does not answer"
        return pod.deletion_time, _verdict(pod, gang.lost(pod), text)
    return None


def _conclusive_end(pod: Pod, gang: Gang, time: datetime) -> tuple[datetime, Verdict] | None:
    if pod.reason == _SHUT_DOWN:
        # the kubelet's words for a node that is shut down in an orderly way
        return time, _verdict(pod, Cause.PREEMPTED, pod.message or "the node is being shut down")
    if pod.reason == _EVICTED:
        # without a disruption condition it is the pod's own limit that was exceeded, e.g. that of /tmp
        return time, _verdict(pod, Cause.APPLICATION, pod.message or "the pod exceeded a limit of its own")
    if pod.terminated_reason == _OOM_KILLED:
        return time, _verdict(pod, Cause.OUT_OF_MEMORY, "the container exceeded its memory limit (OOMKilled)")
    code = _code(pod)
    cause = _BY_EXIT_CODE.get(code) if code is not None else None
    if cause == Cause.USER_ERROR and code == ExitCode.CONFIG and gang.has_trained:
        cause = Cause.CONTRACT_SKEW
    if cause is None and gang.reclaim_taint(pod) and ended_without_a_word(pod):
        return time, _reclaimed(pod, gang)
    return (time, _verdict(pod, cause, "")) if cause else None


def _reclaimed(pod: Pod, gang: Gang) -> Verdict:
    text = f"pod {pod.name} went with its node {pod.node}, which is being taken away (taint {gang.reclaim_taint(pod)})"
    return _verdict(pod, Cause.PREEMPTED, text)


def _is_disrupted_with_its_node(pod: Pod, gang: Gang) -> bool:
    if pod.disruption_reason == "DeletionByPodGC":
        return True
    return pod.disruption_reason == "DeletionByTaintManager" and gang.is_node_lost(pod)


# --- evidence that points somewhere -------------------------------------------------------------------------------


def _silent_pod(gang: Gang, failed: Sequence[Pod]) -> Pod | None:
    """The pod of the rank that its peers lost, while nothing of its own says what became of it."""
    for pod in failed:
        words = termination_of(pod) if pod.exit_code == ExitCode.PEER_LOST else None
        if words is None or words.rank is None:
            continue
        index = words.rank // gang.processes_per_node
        named = next((peer for peer in gang.everybody if peer.index == index), None)
        if named is None and index in gang.missing_indexes and index != pod.index:
            return _unseen(pod, index)
        if named is not None and named is not pod and not named.is_terminal:
            return named
    return None


def _unseen(peer: Pod, index: int) -> Pod:
    """A pod that went before this operator looked: only its index is known, from its peers."""
    return Pod(
        name=f"of index {index}",
        uid="",
        job_uid=peer.job_uid,
        stage=peer.stage,
        attempt=peer.attempt,
        run=peer.run,
        index=index,
        creation_time=peer.creation_time,
        is_vanished=True,
    )


def _describe_silence(pod: Pod, gang: Gang) -> str:
    if pod.is_vanished:
        return f"its peers lost pod {pod.name}, and it vanished"
    state = "does not answer" if gang.is_node_lost(pod) else "is cut off"
    return f"its peers lost pod {pod.name}: node {pod.node} {state}"


def _best_guess(failed: Sequence[Pod], missing: frozenset[int], gang: Gang) -> Verdict:
    """What is left when nothing is conclusive, and nothing better can come."""
    own_failures = [
        pod
        for pod in failed
        if pod.exit_code not in (None, _SIGKILL, *_VICTIM_CODES)
        and pod.terminated_reason not in _NOT_OUR_EXIT
        and termination_of(pod) is not None
    ]
    if own_failures:
        return _verdict(_earliest(own_failures), Cause.APPLICATION, "")
    killed = [pod for pod in failed if pod.exit_code not in _VICTIM_CODES]
    if killed or failed:
        first = _earliest(killed or failed)
        words = termination_of(first)
        said = words.message if words and words.message else first.terminated_reason
        detail = f": {said}" if said else ""
        code = f" with exit code {first.exit_code}" if first.exit_code is not None else ""
        return _verdict(first, Cause.UNKNOWN, f"pod {first.name} ended{code} without naming a cause{detail}")
    gone = next((pod for pod in gang.vanished), None)
    if gone is not None:
        return _verdict(gone, Cause.UNKNOWN, f"pod {gone.name} was removed while it ran")
    return Verdict(cause=Cause.UNKNOWN, message=_describe(failed, missing))


def _describe(failed: Sequence[Pod], missing: frozenset[int]) -> str:
    """What can be said without a judgement."""
    if failed:
        first = _earliest(failed)
        return f"pod {first.name} ended" + (f" with exit code {first.exit_code}" if first.exit_code is not None else "")
    names = ", ".join(str(index) for index in sorted(missing)) or "all"
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
