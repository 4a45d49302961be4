"""Builders of what a pass sees, so that a test shows only what matters: ``a_job().with_lora(r=8).on(nodes=2)``.

Every maker is frozen; each ``with_…`` returns a changed copy. Times count from ``NOW``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator import constants
from finetune_operator.api.conditions import find_condition
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.runtime import FineTuneRuntimeSpec
from finetune_operator.api.status import FactsStatus, FineTuneJobStatus
from finetune_operator.core.actions import Actions
from finetune_operator.core.observed import ChildJob, JobObject, NodeState, Observed, Pod
from finetune_operator.core.reconcile import reconcile
from finetune_operator.core.snapshot import Snapshot, take_snapshot

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
"""The clock of all tests."""

NAMESPACE, NAME, UID = "research", "support", "6f1c2f0a-0000-4000-8000-000000000001"
MODEL_DIGEST, DATA_DIGEST, RESULT_DIGEST = "1" * 64, "2" * 64, "3" * 64


def at(seconds: float) -> datetime:
    """``seconds`` after ``NOW``."""
    return NOW + timedelta(seconds=seconds)


# --- specs --------------------------------------------------------------------------------------------------------

MINIMAL_SPEC: dict[str, Any] = {
    "model": {"persistentVolumeClaim": {"claimName": "models", "path": "tiny"}},
    "dataset": {"persistentVolumeClaim": {"claimName": "datasets", "path": "support.jsonl"}},
    "method": {"lora": {}},
}


@dataclass(frozen=True)
class JobMaker:
    """A FineTuneJob."""

    raw: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(MINIMAL_SPEC))
    name: str = NAME
    labels: Mapping[str, str] = field(default_factory=dict)
    status: FineTuneJobStatus = field(default_factory=FineTuneJobStatus)
    generation: int = 1
    is_being_deleted: bool = False
    spec_error: str = ""

    def with_spec(self, **fields: Any) -> JobMaker:
        """Fields of the spec by their camelCase names; dictionaries are merged one level deep."""
        raw = copy.deepcopy(self.raw)
        for key, value in fields.items():
            raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
        return replace(self, raw=raw)

    def with_lora(self, **fields: Any) -> JobMaker:
        """Method LoRA."""
        return replace(self, raw={**self.raw, "method": {"lora": fields}})

    def with_qlora(self, **fields: Any) -> JobMaker:
        """Method QLoRA."""
        return replace(self, raw={**self.raw, "method": {"qlora": fields}})

    def with_full(self) -> JobMaker:
        """Every parameter."""
        return replace(self, raw={**self.raw, "method": {"full": {}}})

    def distributed(self, **fields: Any) -> JobMaker:
        """``spec.distributed``: strategy, cpuOffload."""
        return self.with_spec(distributed=fields)

    def with_bucket(self, role: str, uri: str, secret: str = "") -> JobMaker:
        """``checkpoint`` or ``output`` in an object store."""
        return self.with_spec(**{role: {"uri": uri, **({"secretRef": {"name": secret}} if secret else {})}})

    def with_training(self, **fields: Any) -> JobMaker:
        """Hyper-parameters."""
        return self.with_spec(training=fields)

    def with_model(self, uri: str) -> JobMaker:
        """A model of the Hub."""
        return replace(self, raw={**self.raw, "model": {"uri": uri}})

    def with_dataset(self, **fields: Any) -> JobMaker:
        """Fields of the dataset."""
        return self.with_spec(dataset=fields)

    def with_storage(self, claim: str, path: str = "") -> JobMaker:
        """Checkpoints of its own."""
        return self.with_spec(checkpoint={"persistentVolumeClaim": {"claimName": claim, "path": path}})

    def with_output(self, claim: str) -> JobMaker:
        """Adapters somewhere else than checkpoints."""
        return self.with_spec(output={"persistentVolumeClaim": {"claimName": claim}})

    def with_run(self, run_id: str) -> JobMaker:
        """``spec.runId``."""
        return self.with_spec(runId=run_id)

    def with_backoff_limit(self, limit: int) -> JobMaker:
        """``spec.backoffLimit``."""
        return self.with_spec(backoffLimit=limit)

    def on(self, **placement: Any) -> JobMaker:
        """``spec.placement[0]``: pool, nodes, gpusPerNode."""
        return self.with_spec(placement=[placement])

    def suspended(self) -> JobMaker:
        """``spec.suspend``."""
        return self.with_spec(suspend=True)

    def named(self, name: str) -> JobMaker:
        """Another name."""
        return replace(self, name=name)

    def labelled(self, **labels: str) -> JobMaker:
        """Labels; ``__`` stands for ``/`` and ``_`` for ``-``."""
        return replace(self, labels={k.replace("__", "/").replace("_", "-"): v for k, v in labels.items()})

    def with_status(self, status: FineTuneJobStatus) -> JobMaker:
        """What was written before."""
        return replace(self, status=status)

    def being_deleted(self) -> JobMaker:
        """With a deletion timestamp."""
        return replace(self, is_being_deleted=True)

    def unreadable(self, error: str) -> JobMaker:
        """A spec that does not parse."""
        return replace(self, spec_error=error)

    def spec(self) -> FineTuneJobSpec:
        """The parsed spec."""
        return FineTuneJobSpec.model_validate(self.raw)

    def build(self) -> JobObject:
        """As the core sees it."""
        return JobObject(
            namespace=NAMESPACE,
            name=self.name,
            uid=UID,
            generation=self.generation,
            resource_version="1",
            spec=None if self.spec_error else self.spec(),
            spec_error=self.spec_error,
            status=self.status,
            labels=self.labels,
            is_being_deleted=self.is_being_deleted,
        )


def a_job() -> JobMaker:
    """A job with nothing but what is required."""
    return JobMaker()


def a_pool(name: str = "default", **fields: Any) -> dict[str, Any]:
    """A pool of CPU nodes."""
    return {"name": name, "device": "cpu", "nodes": 4, "gpusPerNode": 2, **fields}


def a_runtime(*pools: dict[str, Any], **fields: Any) -> FineTuneRuntimeSpec:
    """A runtime with storage and, unless given, one CPU pool."""
    return FineTuneRuntimeSpec.model_validate(
        {
            "image": "registry.example.org/finetune-trainer@sha256:" + "a" * 64,
            "pools": list(pools) or [a_pool()],
            "storage": {"persistentVolumeClaim": {"claimName": "finetune-storage"}},
            **fields,
        }
    )


def a_snapshot(job: JobMaker | None = None, runtime: FineTuneRuntimeSpec | None = None) -> Snapshot:
    """What a run was accepted with."""
    return take_snapshot((job or a_job()).spec(), runtime or a_runtime())


# --- last words ---------------------------------------------------------------------------------------------------


def raw_facts(train_rows: int = 216, data_digest: str = DATA_DIGEST) -> dict[str, Any]:
    """What prepare reports, in camelCase."""
    root = f"file:///mnt/finetune/storage/cache/data/{data_digest}"
    return {
        "model": {
            "architecture": "LlamaForCausalLM",
            "parameters": 134515008,
            "weightBytes": 269060552,
            "dtype": "BF16",
            "stagedUri": "file:///mnt/finetune/model/tiny",
            "digest": MODEL_DIGEST,
        },
        "dataset": {
            "format": "messages",
            "trainRows": train_rows,
            "evalRows": 24,
            "trainTokens": 11880,
            "evalTokens": 1320,
            "longestRowTokens": 74,
            "trainUri": f"{root}/train.jsonl",
            "evalUri": f"{root}/eval.jsonl",
            "digest": data_digest,
        },
    }


def facts(train_rows: int = 216, **dataset: Any) -> FactsStatus:
    """Facts as the status holds them; further fields of the dataset in camelCase."""
    raw = raw_facts(train_rows)
    return FactsStatus.model_validate(raw | {"dataset": raw["dataset"] | dataset})


def packed_facts(packs: int = 31) -> FactsStatus:
    """Facts of a dataset whose rows share sequences."""
    return facts(packsUri=f"file:///mnt/finetune/storage/cache/data/{DATA_DIGEST}/packs.json", trainPacks=packs)


def a_result(**fields: Any) -> dict[str, Any]:
    """A published adapter."""
    return {
        "uri": f"file:///mnt/finetune/storage/output/{NAMESPACE}/{NAME}/run-data",
        "digest": RESULT_DIGEST,
        "metrics": {"baseEvalLoss": 3.9, "evalLoss": 1.7, "trainLoss": 1.5},
        **fields,
    }


def prepared(**fields: Any) -> str:
    """Termination message of a prepare pod that found everything well."""
    return json.dumps({"outcome": "Succeeded", **raw_facts(), **fields})


SAVED = {"step": 30, "uri": "file:///mnt/finetune/storage/c", "time": "2026-05-01T12:01:40Z"}
"""A checkpoint, in last words."""


def last_words(code: int, **fields: Any) -> str:
    """Termination message of a trainer pod."""
    outcome = {0: "Succeeded", 75: "Preempted"}.get(code, "Failed")
    return json.dumps({"outcome": outcome, "exitCode": code, **fields})


def a_fault(**fields: str) -> dict[str, str]:
    """What only the user can mend."""
    return {
        "field": "spec.dataset",
        "value": "support.jsonl",
        "message": "line 7 has no answer",
        "remedy": "add an assistant message",
        **fields,
    }


# --- pods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PodMaker:
    """A pod of a gang, running since ``NOW`` on a node of its own."""

    fields: dict[str, Any]

    def _with(self, **fields: Any) -> PodMaker:
        return PodMaker({**self.fields, **fields})

    def pending(self) -> PodMaker:
        """Not running yet."""
        return self._with(phase="Pending", node="")

    def unschedulable(self, message: str = "0/3 nodes are available") -> PodMaker:
        """The scheduler finds no node."""
        return self.pending()._with(unschedulable_message=message)

    def waiting(self, reason: str, message: str = "") -> PodMaker:
        """The kubelet waits for something."""
        return self._with(phase="Pending", waiting_reason=reason, waiting_message=message)

    def on_node(self, node: str) -> PodMaker:
        """On this node."""
        return self._with(node=node)

    def exited(self, code: int, *, after: float = 10, words: str | None = None, **termination: Any) -> PodMaker:
        """Ended with a code, and with last words when any are given."""
        message = words if words is not None else (last_words(code, **termination) if termination else "")
        return self._with(
            phase="Succeeded" if code == 0 else "Failed",
            exit_code=code,
            terminated_reason="Completed" if code == 0 else "Error",
            termination_message=message,
            finished_time=at(after),
        )

    def never_ran(self, reason: str) -> PodMaker:
        """The container runtime could not start it."""
        return self._with(terminated_reason=reason)

    def failed_silently(self) -> PodMaker:
        """Failed, with no state of its container."""
        return self._with(phase="Failed")

    def oom_killed(self, *, after: float = 10) -> PodMaker:
        """Killed by the kernel for its memory limit."""
        return self.exited(137, after=after)._with(terminated_reason="OOMKilled")

    def disrupted(self, reason: str, message: str = "", *, after: float = 10) -> PodMaker:
        """Condition ``DisruptionTarget``."""
        return self._with(disruption_reason=reason, disruption_message=message, disruption_time=at(after))

    def shut_down_with_its_node(self, *, after: float = 10) -> PodMaker:
        """The kubelet's graceful node shutdown."""
        return self._with(
            phase="Failed", reason="Terminated", message="imminent node shutdown", finished_time=at(after)
        )

    def deleted(self, *, gone_by: float) -> PodMaker:
        """Terminating, with its grace period ending at ``gone_by``."""
        return self._with(deletion_time=at(gone_by))

    def vanished(self) -> PodMaker:
        """Its object is gone; this is how a watch showed it last."""
        return self._with(is_vanished=True)

    def evicted_for_its_own_limit(self, message: str, *, after: float = 10) -> PodMaker:
        """The kubelet's eviction of a pod that overfilled its own volume."""
        return self._with(phase="Failed", reason="Evicted", message=message, finished_time=at(after))

    def bound(self, after: float = 0) -> PodMaker:
        """Got its node then."""
        return self._with(bound_time=at(after))

    def of_run(self, run: str) -> PodMaker:
        """Of another run."""
        return self._with(run=run)

    def of_job(self, uid: str) -> PodMaker:
        """Made by another Job."""
        return self._with(job_uid=uid)

    def build(self) -> Pod:
        """As the core sees it."""
        return Pod(**self.fields)


def a_pod(index: int = 0, *, attempt: int = 1) -> PodMaker:
    """Pod ``index`` of attempt ``attempt``, running."""
    return PodMaker(
        {
            "name": f"{NAME}-a{attempt}-{index}-x",
            "uid": f"pod-a{attempt}-{index}",
            "job_uid": f"job-a{attempt}",
            "stage": constants.STAGE_TRAIN,
            "attempt": attempt,
            "run": a_snapshot().digest[:12],
            "index": index,
            "creation_time": NOW,
            "phase": "Running",
            "node": f"node-{index}",
        }
    )


def a_prepare_pod() -> PodMaker:
    """The pod of the CPU stage, running."""
    return a_pod()._with(
        name=f"{NAME}-prepare-x", uid="pod-prepare", job_uid="job-prepare", stage=constants.STAGE_PREPARE, attempt=0
    )


def an_attempt_job(number: int = 1, **fields: Any) -> ChildJob:
    """The Indexed Job of an attempt."""
    values = {
        "name": f"{NAME}-a{number}",
        "uid": f"job-a{number}",
        "stage": constants.STAGE_TRAIN,
        "attempt": number,
        "run": a_snapshot().digest[:12],
        "creation_time": NOW,
    }
    return ChildJob(**{**values, **fields})


def a_prepare_job(**fields: Any) -> ChildJob:
    """The Job of the CPU stage."""
    return an_attempt_job(
        0, **{"name": f"{NAME}-prepare", "uid": "job-prepare", "stage": constants.STAGE_PREPARE, **fields}
    )


# --- what a pass sees ---------------------------------------------------------------------------------------------


def observed(job: JobMaker, *, pods: tuple[PodMaker, ...] = (), **fields: Any) -> Observed:
    """One view; surroundings are fine unless given."""
    values: dict[str, Any] = {
        "runtime": a_runtime(),
        "namespace_labels": {constants.NAMESPACE_NAME_LABEL: NAMESPACE},
        "pods": tuple(pod.build() for pod in pods),
    }
    return Observed(job=job.build(), **{**values, **fields})


def nodes(**ready: bool) -> dict[str, NodeState]:
    """Nodes by name (``_`` stands for ``-``) that exist and are ready or not."""
    return {name.replace("_", "-"): NodeState(exists=True, ready=value) for name, value in ready.items()}


@dataclass
class Story:
    """Passes over one job, each starting from the status that the last one left."""

    job: JobMaker
    snapshot: Snapshot | None = None
    runtime: FineTuneRuntimeSpec = field(default_factory=a_runtime)
    actions: Actions = field(default_factory=Actions)

    def sees(self, now: datetime = NOW, *, pods: tuple[PodMaker, ...] = (), **fields: Any) -> Actions:
        """One pass."""
        values = {"snapshot": self.snapshot, "runtime": self.runtime, **fields}
        self.actions = reconcile(observed(self.job, pods=pods, **values), now)
        if self.actions.status is not None:
            self.job = self.job.with_status(FineTuneJobStatus.model_validate(self.actions.status))
        return self.actions

    @property
    def status(self) -> FineTuneJobStatus:
        """The newest status."""
        return self.job.status

    def condition(self, type_: str) -> tuple[str, str]:
        """Status and reason of a condition; empty when it was never set."""
        found = find_condition(self.status.conditions, type_)
        return (found.status, found.reason) if found else ("", "")

    def created(self) -> list[str]:
        """Kind and name of what the last pass created."""
        return [f"{item['kind']}/{item['metadata']['name']}" for item in self.actions.create]

    def deleted(self) -> list[str]:
        """Kind and name of what the last pass deleted."""
        return [f"{item.kind}/{item.name}" for item in self.actions.delete]

    def events(self) -> list[str]:
        """Reasons of the events of the last pass."""
        return [event.reason for event in self.actions.events]


def accepted(job: JobMaker | None = None, runtime: FineTuneRuntimeSpec | None = None) -> Story:
    """A story after acceptance."""
    maker = job or a_job()
    story = Story(maker, a_snapshot(maker, runtime), runtime or a_runtime())
    story.sees()
    return story


def training(job: JobMaker | None = None, runtime: FineTuneRuntimeSpec | None = None) -> Story:
    """A story after the CPU stage, whose attempt 1 was just created."""
    story = accepted(job, runtime)
    assert story.snapshot is not None
    run = story.snapshot.digest[:12]
    story.sees(
        jobs=(a_prepare_job(run=run, is_complete=True),),
        pods=(a_prepare_pod().of_run(run).exited(0, words=prepared()),),
    )
    assert story.status.facts is not None
    assert story.status.totals.attempts == 1
    return story


def unrecorded(story: Story) -> Story:
    """The same, as if the operator had died after creating attempt 1 and before recording it."""
    status = story.status
    story.job = story.job.with_status(
        status.model_copy(update={"attempts": [], "totals": status.totals.model_copy(update={"attempts": 0})})
    )
    return story


def preempted(story: Story, number: int, begin: float, end: float) -> None:
    """Attempt ``number`` runs from ``begin`` until it is preempted at ``end``; its pod is gone ten seconds later."""
    job = an_attempt_job(number, creation_time=at(begin))
    pod = a_pod(attempt=number).bound(begin)
    story.sees(at(begin + 5), jobs=(job,), pods=(pod,))
    story.sees(at(end), jobs=(job,), pods=(pod.disrupted("EvictionByEvictionAPI", after=end),))
    story.sees(at(end + 10), pods=(pod.exited(75, after=end + 10),))
