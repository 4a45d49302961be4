"""What one pass sees: the job, its children and their surroundings, read afresh and frozen.

``gather`` in the shell fills an ``Observed``; the decisions read nothing else. Children are parsed into the few facts
that decisions need, so tests can build them by hand and a new Kubernetes version cannot change them unseen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from finetune_operator import constants
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.runtime import FineTuneRuntimeSpec
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.core.node_taints import OUT_OF_SERVICE_TAINT, RECLAIM_TAINTS
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.messages import Progress


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time of the API server."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


NORMAL_WAITING = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a container that waits as every container does at first."""


@dataclass(frozen=True)
class JobObject:
    """The FineTuneJob."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    spec: FineTuneJobSpec | None
    """None: the stored spec does not parse; ``spec_error`` says why."""
    status: FineTuneJobStatus
    spec_error: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    is_being_deleted: bool = False


@dataclass(frozen=True)
class ChildJob:
    """A ``batch/v1`` Job of ours."""

    name: str
    uid: str
    stage: str
    attempt: int
    run: str
    creation_time: datetime
    start_time: datetime | None = None
    """When the Job controller began with it, or a queue last admitted it."""
    is_being_deleted: bool = False
    is_suspended: bool = False
    failed_indexes: frozenset[int] = frozenset()
    is_failed: bool = False
    is_complete: bool = False

    @classmethod
    def from_api(cls, raw: Mapping[str, Any]) -> ChildJob:
        """Parse an object of the API."""
        meta, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
        labels = meta.get("labels", {})
        true = {c["type"] for c in status.get("conditions", []) if c.get("status") == "True"}
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            stage=labels.get(constants.STAGE_LABEL, ""),
            attempt=_attempt_of(raw) or 0,
            run=labels.get(constants.RUN_LABEL, ""),
            creation_time=_require_time(meta["creationTimestamp"]),
            start_time=parse_time(status.get("startTime")),
            is_being_deleted="deletionTimestamp" in meta,
            # Until the Job controller has taken note of a resumption, the start time is that of before.
            is_suspended=bool(spec.get("suspend")) or "Suspended" in true,
            failed_indexes=_indexes(status.get("failedIndexes", "")),
            # FailureTarget and SuccessCriteriaMet come at once; Failed and Complete only after all pods are gone.
            is_failed=bool(true & {"Failed", "FailureTarget"}),
            is_complete=bool(true & {"Complete", "SuccessCriteriaMet"}),
        )


@dataclass(frozen=True)
class Pod:
    """A pod of ours."""

    name: str
    uid: str
    job_uid: str
    """Of the Job that made it, which may be gone."""
    stage: str
    attempt: int
    run: str
    index: int
    creation_time: datetime
    phase: str = "Pending"
    node: str = ""
    reason: str = ""
    """``status.reason``, e.g. ``Evicted`` or ``Terminated``."""
    message: str = ""
    deletion_time: datetime | None = None
    """When the pod must be gone: the request plus its grace period."""
    disruption_reason: str = ""
    """Reason of the condition ``DisruptionTarget``, when it is True."""
    disruption_message: str = ""
    disruption_time: datetime | None = None
    exit_code: int | None = None
    terminated_reason: str = ""
    """E.g. ``OOMKilled``, ``Error``, ``Completed``."""
    termination_message: str = ""
    finished_time: datetime | None = None
    """Of a pod that has ended: when its container did, or else when a condition of it last changed."""
    waiting_reason: str = ""
    """E.g. ``ImagePullBackOff``, ``ContainerCreating``."""
    waiting_message: str = ""
    unschedulable_message: str = ""
    bound_time: datetime | None = None
    """When it got its node."""
    is_vanished: bool = False
    """Its object is gone; this is how a watch showed it last."""

    @property
    def is_terminal(self) -> bool:
        """Nothing of it runs any more."""
        return self.phase in ("Succeeded", "Failed")

    def is_gone_by(self, now: datetime) -> bool:
        """Terminal, vanished, or past its grace period (a dead node never confirms)."""
        return self.is_terminal or self.is_vanished or (self.deletion_time is not None and self.deletion_time <= now)

    @classmethod
    def from_api(cls, raw: Mapping[str, Any]) -> Pod:
        """Parse an object of the API."""
        meta, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
        labels = meta.get("labels", {})
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        disruption = conditions.get("DisruptionTarget", {})
        disrupted = disruption.get("status") == "True"
        scheduled = conditions.get("PodScheduled", {})
        state = _container_state(status)
        terminated, waiting = state.get("terminated", {}), state.get("waiting", {})
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            stage=labels.get(constants.STAGE_LABEL, ""),
            job_uid=_controller_of(raw).get("uid", ""),
            attempt=_attempt_of(raw) or 0,
            run=labels.get(constants.RUN_LABEL, ""),
            index=_index_of(raw) or 0,
            creation_time=_require_time(meta["creationTimestamp"]),
            phase=status.get("phase", "Pending"),
            node=spec.get("nodeName", ""),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            deletion_time=parse_time(meta.get("deletionTimestamp")),
            disruption_reason=disruption.get("reason", "Unknown") if disrupted else "",
            disruption_message=disruption.get("message", "") if disrupted else "",
            disruption_time=parse_time(disruption.get("lastTransitionTime")) if disrupted else None,
            exit_code=terminated.get("exitCode"),
            terminated_reason=terminated.get("reason", ""),
            termination_message=terminated.get("message", ""),
            finished_time=parse_time(terminated.get("finishedAt")) or _last_transition(status),
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            unschedulable_message=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
            bound_time=parse_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        )


def own_jobs(raws: Iterable[Mapping[str, Any]], owner_uid: str) -> tuple[ChildJob, ...]:
    """The Jobs that the FineTuneJob of this uid controls: anybody who may create a Job can write our labels on it."""
    return tuple(
        ChildJob.from_api(raw)
        for raw in raws
        if _controller_of(raw).get("uid") == owner_uid and _attempt_of(raw) is not None
    )


def own_pods(raws: Iterable[Mapping[str, Any]]) -> tuple[Pod, ...]:
    """The pods that Jobs made: the last words of a pod that somebody created by hand are not believed.

    The Job may be gone already: its pods outlive it, and may still write.
    """
    return tuple(
        Pod.from_api(raw)
        for raw in raws
        if _controller_of(raw).get("kind") == "Job" and _attempt_of(raw) is not None and _index_of(raw) is not None
    )


def loose_pods(raws: Iterable[Mapping[str, Any]]) -> tuple[Pod, ...]:
    """Pods that a Job made and that no Job controls any more, as ``kubectl delete job --cascade=orphan`` leaves them.

    They run on and may still write. Nothing else of them counts: anybody may have written our labels on them.
    """
    pods = (
        Pod.from_api(raw)
        for raw in raws
        if not _controller_of(raw)
        and constants.JOB_CONTROLLER_LABEL in raw["metadata"].get("labels", {})
        and _attempt_of(raw) is not None
        and _index_of(raw) is not None
    )
    return tuple(pod for pod in pods if not pod.is_terminal)


@dataclass(frozen=True)
class SeenChild:
    """All that a decision can see of a Job or a pod; two that equal each other lead to the same decision."""

    owner_uid: str
    """As the label has it: lists are by it."""
    job: ChildJob | None = None
    pod: Pod | None = None
    loose_pod: Pod | None = None

    @classmethod
    def from_api(cls, raw: Mapping[str, Any]) -> SeenChild:
        """Parse an object of the API."""
        owner_uid = raw["metadata"].get("labels", {}).get(constants.JOB_UID_LABEL, "")
        if "template" in raw["spec"]:
            return cls(owner_uid, job=next(iter(own_jobs([raw], owner_uid)), None))
        pods, loose = own_pods([raw]), loose_pods([raw])
        return cls(owner_uid, pod=next(iter(pods), None), loose_pod=next(iter(loose), None))

    @property
    def is_untouched(self) -> bool:
        """Nothing has happened to it since it was made, but what happens to every Job and pod that goes well."""
        child = self.job or self.pod or self.loose_pod
        return self.loose_pod is None and child == _as_created(child)

    def without_routine(self) -> SeenChild:
        """As if it had not begun yet; decisions wait for that, and have nothing to say about it.

        That a training pod runs is no routine: people are told. That a prepare pod does is. That all of a Job's pods
        have succeeded they say themselves.
        """
        if self.job is not None:
            return replace(self, job=replace(self.job, start_time=None, is_complete=False))
        if self.pod is None:
            return self
        is_normal = self.pod.waiting_reason in NORMAL_WAITING
        runs_unnoticed = self.pod.stage == constants.STAGE_PREPARE and self.pod.phase == "Running"
        pod = replace(
            self.pod,
            node="",
            bound_time=None,
            phase="Pending" if runs_unnoticed else self.pod.phase,
            waiting_reason="" if is_normal else self.pod.waiting_reason,
            waiting_message="" if is_normal else self.pod.waiting_message,
        )
        return replace(self, pod=pod)


def _as_created(child: ChildJob | Pod | None) -> ChildJob | Pod | None:
    """What it is and whose, which has no defaults, and nothing of how it is."""
    if child is None:
        return None
    return type(child)(
        **{field.name: getattr(child, field.name) for field in fields(child) if field.default is MISSING}
    )


def still_there(missed: Iterable[Pod], raws: Iterable[Mapping[str, Any]]) -> tuple[Pod, ...]:
    """Pods that lost our labels to somebody, as they are now and as whose they were known."""
    by_uid = {raw["metadata"]["uid"]: raw for raw in raws}
    return tuple(
        replace(Pod.from_api(by_uid[pod.uid]), stage=pod.stage, attempt=pod.attempt, run=pod.run)
        for pod in missed
        if pod.uid in by_uid
    )


def vanished(known: Collection[Pod], listed: Collection[Pod], jobs: Collection[ChildJob]) -> tuple[Pod, ...]:
    """Those that were there and are not any more, except those of a Job that a queue has stopped since."""
    present = {pod.uid for pod in listed}
    begun = {job.uid: None if job.is_suspended else job.start_time or job.creation_time for job in jobs}
    return tuple(
        replace(pod, is_vanished=True) for pod in known if pod.uid not in present and _is_of_this_admission(pod, begun)
    )


def _is_of_this_admission(pod: Pod, begun: Mapping[str, datetime | None]) -> bool:
    if pod.job_uid not in begun:
        return True
    since = begun[pod.job_uid]
    return since is not None and pod.creation_time >= since


@dataclass(frozen=True)
class NodeState:
    """A node that a suspicious pod ran on."""

    exists: bool
    ready: bool
    taints: frozenset[str] = frozenset()
    """Their keys."""

    @property
    def is_lost(self) -> bool:
        """Nothing that runs there can be reached."""
        return not (self.exists and self.ready) or OUT_OF_SERVICE_TAINT in self.taints

    @property
    def reclaim_taint(self) -> str:
        """The taint that says that the node is being taken away; empty: it is not."""
        return min(self.taints & RECLAIM_TAINTS, default="")


@dataclass(frozen=True)
class LogReport:
    """What the log of rank 0 said last. The operator forgets it when it restarts and reads it again."""

    pod_uid: str
    """A namesake that was deleted and applied again counts its attempts from 1 too; uids are never used twice."""
    progress: Progress | None = None
    phase: str = ""


@dataclass(frozen=True)
class Observed:
    """One frozen view of the world."""

    job: JobObject
    jobs: tuple[ChildJob, ...] = ()
    pods: tuple[Pod, ...] = ()
    loose_pods: tuple[Pod, ...] = ()
    """Pods of ours that run and that somebody took from their Job."""
    snapshot: Snapshot | None = None
    snapshot_error: str = ""
    """The snapshot is there and does not parse."""
    runtime: FineTuneRuntimeSpec | None = None
    """The runtime that the job names; read only while there is no snapshot."""
    runtime_error: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    missing_claims: frozenset[str] = frozenset()
    """Claims that the job or its runtime names and that do not exist; read only while there is no snapshot."""
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    vanished_pods: tuple[Pod, ...] = ()
    """Pods that a watch showed and that are gone now: their last known state is evidence, and they are nothing else."""
    busy_pools: frozenset[str] = frozenset()
    """Pools (``placement_policy.pool_key``) for whose nodes another job's gang waits, or is next in line to."""
    log: LogReport | None = None

    def prepare_job(self) -> ChildJob | None:
        """The Job of the CPU stage."""
        return next((job for job in self.jobs if job.stage == constants.STAGE_PREPARE), None)

    def prepare_pods(self) -> tuple[Pod, ...]:
        """The pods of the CPU stage of this run, oldest first."""
        job = self.prepare_job()
        pods = (pod for pod in self.pods if pod.stage == constants.STAGE_PREPARE and self._is_of_this_run(pod, job))
        return tuple(sorted(pods, key=lambda pod: pod.creation_time))

    def attempt_job(self, number: int) -> ChildJob | None:
        """The Job of attempt ``number``."""
        return next((j for j in self.jobs if j.stage == constants.STAGE_TRAIN and j.attempt == number), None)

    def attempt_pods(self, number: int) -> tuple[Pod, ...]:
        """The pods of attempt ``number`` by index."""
        return self._gang(self.pods, number)

    def has_succeeded(self, number: int, nodes: int) -> bool:
        """Whether the gang of so many pods published its result: its Job says so, or all of its pods."""
        job, pods = self.attempt_job(number), self.attempt_pods(number)
        is_complete = job is not None and job.is_complete
        return is_complete or (len(pods) == nodes and all(pod.phase == "Succeeded" for pod in pods))

    def vanished_attempt_pods(self, number: int) -> tuple[Pod, ...]:
        """Those of attempt ``number`` that are gone, by index."""
        return self._gang(self.vanished_pods, number)

    def _gang(self, pods: Iterable[Pod], number: int) -> tuple[Pod, ...]:
        job = self.attempt_job(number)
        gang = (pod for pod in pods if pod.stage == constants.STAGE_TRAIN and pod.attempt == number)
        return tuple(sorted((pod for pod in gang if self._is_of_this_run(pod, job)), key=lambda pod: pod.index))

    def _is_of_this_run(self, pod: Pod, job: ChildJob | None) -> bool:
        """Pods linger of a run that was given up, of an earlier Job of the same name, and of a time before a queue or a
        person stopped the Job and let it go on: their words are not heard."""
        if job is not None and (pod.job_uid != job.uid or _ended_before(pod, job)):
            return False
        return self.snapshot is None or pod.run == self.snapshot.digest[:12]


def _ended_before(pod: Pod, job: ChildJob) -> bool:
    """Whether the pod is one from before the Job was last resumed."""
    return pod.is_terminal and job.start_time is not None and pod.creation_time < job.start_time


def _last_transition(status: Mapping[str, Any]) -> datetime | None:
    """When a pod that failed without the state of its container did so: its conditions change with it."""
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    times = (parse_time(condition.get("lastTransitionTime")) for condition in status.get("conditions", []))
    return max((time for time in times if time is not None), default=None)


def _controller_of(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The owner reference of its controller."""
    owners: list[dict[str, Any]] = raw["metadata"].get("ownerReferences", [])
    return next((owner for owner in owners if owner.get("controller")), {})


def _attempt_of(raw: Mapping[str, Any]) -> int | None:
    return _number(raw["metadata"].get("labels", {}).get(constants.ATTEMPT_LABEL, "0"))


def _index_of(raw: Mapping[str, Any]) -> int | None:
    return _number(raw["metadata"].get("annotations", {}).get(constants.COMPLETION_INDEX_ANNOTATION, "0"))


def _number(text: str) -> int | None:
    """None: written by a hand that is not ours."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _container_state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    for container in status.get("containerStatuses", []):
        if container.get("name") == constants.TRAINER_CONTAINER:
            state: Mapping[str, Any] = container.get("state", {})
            return state
    return {}


def _indexes(text: str) -> frozenset[int]:
    """``1,3-5`` as the Job controller writes it."""
    result: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        result.update(range(int(first), int(last or first) + 1))
    return frozenset(result)


def _require_time(text: str) -> datetime:
    time = parse_time(text)
    if time is None:
        raise ValueError("an API object must have a creationTimestamp")
    return time
