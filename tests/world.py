"""A small simulated cluster for one FineTuneJob: API objects, a Job controller, kubelets, nodes that fail, a user.

It keeps objects as the API server would show them, so that the core reads them through its own parsers. ``execute``
does what the shell does, in the shell's order, and can die in between. What must hold at every write is asserted here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from finetune_operator import constants
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.builders.names import snapshot_name
from finetune_operator.builders.snapshot import SNAPSHOT_KEY
from finetune_operator.core.actions import Actions, Deletion
from finetune_operator.core.observed import (
    JobObject,
    LogReport,
    NodeState,
    Observed,
    Pod,
    own_jobs,
    own_pods,
    vanished,
)
from finetune_operator.core.reconcile import reconcile
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.config import PrepareConfig, TrainConfig
from finetune_trainer.messages import Progress
from kstatus import is_sound, kstatus
from makers import NAME, NAMESPACE, NOW, UID, JobMaker, a_job, a_result, a_runtime, last_words, raw_facts
from openapi import status_violations

Json = dict[str, Any]
MAX_STATUS_BYTES = 32 * 1024
POOL = json.dumps({})
"""``placement_policy.pool_key`` of the one pool, which selects no nodes."""
GRACE = timedelta(seconds=30)
DISRUPTIONS = ("NodeLost", "Preempted", "NoDevice", "ContractSkew", "Unknown")


def text(time: datetime) -> str:
    """As the API server writes it."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def size_of(status: Json) -> int:
    """Bytes as the API server stores it."""
    return len(json.dumps(status, ensure_ascii=False).encode())


def digest_of(*parts: str) -> str:
    """A digest that tells what it was made from, so that a mix-up of two runs shows."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def owner_of(pod: Json) -> str:
    """uid of the Job that made it."""
    uid: str = pod["metadata"]["ownerReferences"][0]["uid"]
    return uid


@dataclass
class World:
    """Everything there is."""

    job: JobMaker = field(default_factory=lambda: a_job().on(nodes=2).with_training(maxSteps=60))
    now: datetime = NOW
    resource_version: int = 1
    config_maps: dict[str, Json] = field(default_factory=dict)
    services: dict[str, Json] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    pods: dict[str, Json] = field(default_factory=dict)
    nodes: dict[str, bool] = field(default_factory=lambda: {f"node-{i}": True for i in range(3)})
    """Name -> ready."""
    log: LogReport | None = None
    steps: dict[str, int] = field(default_factory=dict)
    """Run digest -> newest checkpoint in the store."""
    saved: int = 0
    fruitless: int = 0
    """Disruptions of this run in a row that saved nothing on what was saved before."""
    runtime_exists: bool = True
    is_full: bool = False
    """Others hold the GPUs of all nodes: training pods find none."""
    is_pool_busy: bool = False
    """Another job's gang waits for the nodes of every pool."""
    is_schema_checked: bool = True
    """A third of the time that a story takes."""
    seen: dict[str, Pod] = field(default_factory=dict)
    """uid -> how a watch showed a training pod last; the operator's memory, lost when it dies."""
    uids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- the operator -----------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        """What ``gather`` would return."""
        jobs, pods = own_jobs(self.jobs.values(), UID), own_pods(self.pods.values())
        raw = self.config_maps.get(snapshot_name(NAME))
        snapshot = Snapshot.from_json(raw["data"][SNAPSHOT_KEY]) if raw else None
        return Observed(
            job=JobObject(
                namespace=NAMESPACE,
                name=NAME,
                uid=UID,
                generation=self.job.generation,
                resource_version=str(self.resource_version),
                spec=self.job.spec(),
                status=FineTuneJobStatus.model_validate(json.loads(json.dumps(self.job.status.to_dict()))),
            ),
            jobs=jobs,
            pods=pods,
            snapshot=snapshot,
            runtime=a_runtime() if self.runtime_exists and snapshot is None else None,
            nodes={name: NodeState(exists=True, ready=ready) for name, ready in self.nodes.items()},
            vanished_pods=vanished(tuple(self.seen.values()), pods, jobs),
            busy_pools=frozenset({POOL} if self.is_pool_busy else ()),
            log=self.log,
        )

    def watch(self) -> None:
        """The operator hears of every pod."""
        self.seen |= {pod.uid: pod for pod in own_pods(self.pods.values()) if pod.stage == constants.STAGE_TRAIN}

    def forget(self) -> None:
        """What an operator knows that has just started."""
        self.log, self.seen = None, {}

    def run_pass(self, *, dies_after: int | None = None) -> Actions:
        """Gather, decide, execute; with ``dies_after`` only so many calls get through."""
        self.watch()
        observed = self.observe()
        actions = reconcile(observed, self.now)
        self.execute(observed, actions, dies_after)
        newest = observed.job.status.totals.attempts
        self.seen = {uid: pod for uid, pod in self.seen.items() if pod.attempt >= newest}
        return actions

    def execute(self, observed: Observed, actions: Actions, dies_after: int | None = None) -> None:
        """The order of the shell: create, status, delete (events touch nothing)."""
        assert not (actions.create and actions.waits_for_nodes in observed.busy_pools), "a gang got past another"
        calls: list[Any] = [*actions.create, *([actions.status] if actions.status is not None else []), *actions.delete]
        for call in calls[:dies_after]:
            if isinstance(call, Deletion):
                self._delete(call)
            elif call is actions.status:
                if observed.job.resource_version != str(self.resource_version):
                    return  # a conflict: the rest of the pass is dropped
                self._write_status(actions.status)
            elif not self._create(call):
                return

    def _store(self, kind: str) -> dict[str, Json]:
        return {"ConfigMap": self.config_maps, "Service": self.services, "Job": self.jobs}[kind]

    def _create(self, manifest: Json) -> bool:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        existing = self._store(kind).get(name)
        if existing is not None:
            return "deletionTimestamp" not in existing["metadata"]
        if kind == "Job":
            self._check_new_job(manifest)
        raw = json.loads(json.dumps(manifest))
        raw["metadata"] |= {"uid": f"uid-{next(self.uids)}", "creationTimestamp": text(self.now)}
        raw["status"] = {}
        self._store(kind)[name] = raw
        return True

    def _check_new_job(self, manifest: Json) -> None:
        """What must hold whenever pods are asked for."""
        labels = manifest["metadata"]["labels"]
        config = json.loads(self.config_maps[self._config_map_of(manifest)]["data"]["config.json"])
        assert config["run"]["digest"][:12] == labels[constants.RUN_LABEL], "the pods would read another run's config"
        if labels[constants.STAGE_LABEL] == constants.STAGE_PREPARE:
            PrepareConfig.model_validate(config)
            return
        TrainConfig.model_validate(config)
        number = int(labels[constants.ATTEMPT_LABEL])
        assert config["attempt"] == number
        writers = [name for name, pod in self.pods.items() if self._may_write(pod)]
        assert not writers, f"attempt {number} is created while {writers} may still write"
        status = self.job.status
        if status.attempts:
            last = status.attempts[-1]
            assert last.end_time is not None, "an attempt follows one whose end is not recorded"
            is_retry = last.run == labels[constants.RUN_LABEL]
            assert last.cause or not is_retry, "an attempt follows one that ended without a cause"
            # a gang that found no nodes, or needs less memory now, has somewhere else to go
            is_new = last.cause == constants.Cause.NOT_SCHEDULED or last.replanned
            is_calm = is_new or self.fruitless < 2 or self.now - last.end_time >= timedelta(seconds=10)
            assert is_calm, f"{self.fruitless} disrupted attempts got nowhere, and the next one follows at once"

    def _may_write(self, pod: Json) -> bool:
        if pod["metadata"]["labels"][constants.STAGE_LABEL] != constants.STAGE_TRAIN:
            return False
        return not Pod.from_api(pod).is_gone_by(self.now)

    @staticmethod
    def _config_map_of(job: Json) -> str:
        volumes = job["spec"]["template"]["spec"]["volumes"]
        name: str = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
        return name

    def _write_status(self, raw: Json) -> None:
        old, new = self.job.status, FineTuneJobStatus.model_validate(raw)
        assert not self.is_schema_checked or status_violations(raw) == []
        assert size_of(raw) < MAX_STATUS_BYTES
        assert is_sound(new), [(c.type, c.status) for c in new.conditions]
        assert new.totals.attempts >= old.totals.attempts
        for total in ("gpu_seconds", "lost_gpu_seconds"):
            assert getattr(new.totals, total) >= getattr(old.totals, total), total
        for cause, count in old.totals.by_cause.items():
            assert new.totals.by_cause.get(cause, 0) >= count
        numbers = [attempt.number for attempt in new.attempts]
        assert numbers == sorted(set(numbers)), "an attempt's number was used twice"
        if old.run is not None and new.run is not None and old.run.digest == new.run.digest:
            assert (new.checkpoint.step if new.checkpoint else 0) >= (old.checkpoint.step if old.checkpoint else 0)
            for type_ in ("Complete", "Failed"):
                was = {c.type: c.status for c in old.conditions}.get(type_)
                now = {c.type: (c.status, c.reason) for c in new.conditions}[type_]
                assert was != "True" or now[0] == "True" or now[1] == "Restarting", "an end was undone"
        if new.facts is not None:
            assert new.run is not None
            assert new.facts.dataset.digest == digest_of("data", new.run.digest), "facts of another run"
        if new.result is not None:
            assert new.run is not None
            assert new.result.digest == digest_of("result", new.run.digest), "result of another run"
        assert new.totals.failures <= self.job.spec().backoff_limit + 1
        self._count_fruitless(old, new)
        self.job = self.job.with_status(new)
        self.resource_version += 1

    def _count_fruitless(self, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
        live = [attempt.number for attempt in old.attempts if attempt.end_time is None]
        ended = [attempt for attempt in new.attempts if attempt.number in live and attempt.end_time is not None]
        saved = new.checkpoint.step if new.checkpoint else 0
        is_asked_for = any(attempt.cause in ("Suspended", "Superseded") for attempt in ended)
        if new.run is None or is_asked_for or (ended and saved > self.saved):
            self.fruitless = 0
        elif ended:
            self.fruitless += ended[-1].cause in DISRUPTIONS
        if new.run is None or ended:
            self.saved = saved

    def _delete(self, deletion: Deletion) -> None:
        store = self._store(deletion.kind)
        raw = store.get(deletion.name)
        if raw is not None and deletion.uid in (None, raw["metadata"]["uid"]):
            del store[deletion.name]

    # --- Kubernetes -------------------------------------------------------------------------------------------

    def controllers(self) -> None:
        """The Job controller, the garbage collector and the kubelets of ready nodes do one round each."""
        owners = {raw["metadata"]["uid"]: raw for raw in self.jobs.values()}
        for pod in self.pods.values():
            # a finalizer keeps every pod until the Job controller has counted it
            if owner_of(pod) in owners:
                self._count(owners[owner_of(pod)], pod)
        for name, pod in list(self.pods.items()):
            self._end_terminating(name, pod)
            if owner_of(pod) not in owners:
                if pod["status"]["phase"] in ("Succeeded", "Failed"):
                    self.pods.pop(name, None)
                else:
                    pod["metadata"].setdefault("deletionTimestamp", text(self.now + GRACE))
        for raw in self.jobs.values():
            self._sync_job(raw)

    def _end_terminating(self, name: str, pod: Json) -> None:
        """A kubelet ends what is terminating, shows its last state for one round, and removes it."""
        if "deletionTimestamp" not in pod["metadata"]:
            return
        node = pod["spec"].get("nodeName", "")
        if node and not self.nodes[node]:
            return
        if not node or pod["status"]["phase"] in ("Succeeded", "Failed"):
            self.vanish(name)
        else:
            self.ends(pod, 75)

    def vanish(self, name: str) -> None:
        """A pod's object goes; the Job controller counts one that had not ended as failed."""
        pod = self.pods.pop(name)
        index = pod["metadata"]["annotations"][constants.COMPLETION_INDEX_ANNOTATION]
        for raw in self.jobs.values():
            if raw["metadata"]["uid"] == owner_of(pod) and raw["indexes"].get(index) == "Running":
                raw["indexes"][index] = "Failed"

    def _sync_job(self, raw: Json) -> None:
        uid, spec = raw["metadata"]["uid"], raw["spec"]
        own = [pod for pod in self.pods.values() if owner_of(pod) == uid]
        for pod in own:
            self._count(raw, pod)
        if spec.get("suspend"):
            for pod in own:
                pod["metadata"].setdefault("deletionTimestamp", text(self.now + GRACE))
                raw["indexes"] = {}
            return
        if self._is_over(raw):
            return
        if spec.get("completionMode") == "Indexed":
            for index in range(spec["completions"]):
                if str(index) not in raw.setdefault("indexes", {}):
                    self._new_pod(raw, index)
            self._conclude(raw, spec["completions"])
        else:
            outcomes = list(raw.get("indexes", {}).values())
            if "Succeeded" in outcomes:
                raw["status"]["conditions"] = [{"type": "Complete", "status": "True"}]
            elif "User" in outcomes or outcomes.count("Failed") > spec["backoffLimit"]:
                raw["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
            elif "Running" not in outcomes:
                self._new_pod(raw, len(outcomes))

    @staticmethod
    def _is_over(raw: Json) -> bool:
        return bool(raw["status"].get("conditions"))

    @staticmethod
    def _conclude(raw: Json, completions: int) -> None:
        outcomes = raw["indexes"]
        failed = sorted(int(index) for index, outcome in outcomes.items() if outcome not in ("Running", "Succeeded"))
        raw["status"]["failedIndexes"] = ",".join(map(str, failed))
        if list(outcomes.values()).count("Succeeded") == completions:
            raw["status"]["conditions"] = [{"type": "Complete", "status": "True"}]
        elif "Running" not in outcomes.values():
            raw["status"]["conditions"] = [{"type": "Failed", "status": "True"}]

    def _count(self, raw: Json, pod: Json) -> None:
        phase, index = pod["status"]["phase"], pod["metadata"]["annotations"][constants.COMPLETION_INDEX_ANNOTATION]
        if phase in ("Succeeded", "Failed") and raw.setdefault("indexes", {}).get(index) == "Running":
            code = Pod.from_api(pod).exit_code
            raw["indexes"][index] = "User" if code in (64, 65) else phase

    def _new_pod(self, job: Json, index: int) -> None:
        name = f"{job['metadata']['name']}-{index}-{next(self.uids)}"
        job.setdefault("indexes", {})[str(index)] = "Running"
        self.pods[name] = {
            "metadata": {
                "name": name,
                "uid": f"uid-{next(self.uids)}",
                "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}],
                "creationTimestamp": text(self.now),
                "labels": dict(job["spec"]["template"]["metadata"]["labels"]),
                "annotations": {constants.COMPLETION_INDEX_ANNOTATION: str(index)},
                "config": self._config_map_of(job),
            },
            "spec": {},
            "status": {"phase": "Pending"},
        }

    def schedule(self) -> None:
        """Pending pods are bound to ready nodes, one of each gang per node, and start."""
        for pod in self.pods.values():
            if pod["status"]["phase"] != "Pending" or "deletionTimestamp" in pod["metadata"]:
                continue
            taken = {
                other["spec"].get("nodeName")
                for other in self.pods.values()
                if other["status"]["phase"] in ("Pending", "Running")
            }
            free = [name for name, ready in self.nodes.items() if ready and name not in taken]
            if self.is_full and pod["metadata"]["labels"][constants.STAGE_LABEL] == constants.STAGE_TRAIN:
                pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "no GPU is free"}]
            elif free:
                pod["spec"]["nodeName"] = free[0]
                bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": text(self.now)}
                pod["status"] = {"phase": "Running", "conditions": [bound]}

    # --- what happens to pods ---------------------------------------------------------------------------------

    def running(self, stage: str | None = None) -> list[Json]:
        """Pods that run on ready nodes."""
        return [
            pod
            for pod in self.pods.values()
            if pod["status"]["phase"] == "Running"
            and self.nodes[pod["spec"]["nodeName"]]
            and stage in (None, pod["metadata"]["labels"][constants.STAGE_LABEL])
        ]

    def ends(self, pod: Json, code: int, message: str = "", reason: str = "") -> None:
        """A container ends."""
        pod["status"] |= {
            "phase": "Succeeded" if code == 0 else "Failed",
            "containerStatuses": [
                {
                    "name": constants.TRAINER_CONTAINER,
                    "state": {
                        "terminated": {
                            "exitCode": code,
                            "reason": reason or ("Completed" if code == 0 else "Error"),
                            "message": message,
                            "finishedAt": text(self.now),
                        }
                    },
                }
            ],
        }

    def disrupt(self, pod: Json, reason: str) -> None:
        """Kubernetes asks a pod to go."""
        others = [each for each in pod["status"].get("conditions", []) if each["type"] != "DisruptionTarget"]
        pod["status"]["conditions"] = [
            *others,
            {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": text(self.now)},
        ]
        pod["metadata"].setdefault("deletionTimestamp", text(self.now + GRACE))

    def config_of(self, pod: Json) -> Json:
        """What the pod reads."""
        config: Json = json.loads(self.config_maps[pod["metadata"]["config"]]["data"]["config.json"])
        return config

    def end_well(self, *stages: str) -> None:
        """Prepare pods report facts; a gang that runs in full trains to its end."""
        for pod in self.running(constants.STAGE_PREPARE) if constants.STAGE_PREPARE in stages else []:
            run = self.config_of(pod)["run"]["digest"]
            result = {"result": self._result(run)} if self.steps.get(run) == 60 else {}
            words = {"outcome": "Succeeded", **raw_facts(data_digest=digest_of("data", run)), **result}
            self.ends(pod, 0, json.dumps(words))
        gang = self.running(constants.STAGE_TRAIN)
        if not gang or constants.STAGE_TRAIN not in stages:
            return
        config = self.config_of(gang[0])
        if len({owner_of(pod) for pod in gang}) == 1 and len(gang) == config["topology"]["nodes"]:
            run = config["run"]["digest"]
            self.steps[run] = 60
            for pod in gang:
                is_first = pod["metadata"]["annotations"][constants.COMPLETION_INDEX_ANNOTATION] == "0"
                self.ends(pod, 0, last_words(0, result=self._result(run)) if is_first else "")

    @staticmethod
    def _result(run: str) -> Json:
        return {**a_result(), "digest": digest_of("result", run)}

    def train_on(self, steps: int) -> None:
        """Rank 0 of a full gang writes a line and a checkpoint."""
        for pod in self.running(constants.STAGE_TRAIN):
            config = self.config_of(pod)
            run = config["run"]["digest"]
            step = min(self.steps.get(run, 0) + steps, 59)
            if self.steps.get(run, 0) < 60:
                self.steps[run] = step
            self.log = LogReport(
                pod_uid=pod["metadata"]["uid"],
                phase="train",
                progress=Progress.model_validate(
                    {
                        "time": text(self.now),
                        "step": step,
                        "totalSteps": 60,
                        "epoch": 1.0,
                        "checkpoint": {"step": step, "uri": "file:///mnt/finetune/storage/c", "time": text(self.now)},
                    }
                ),
            )

    # --- the end ----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Faults stop, pods behave, nodes return when they are needed: the job must come to rest, and stay there."""
        self.runtime_exists, self.is_full, self.is_pool_busy = True, False, False
        for raw in self.jobs.values():
            raw["spec"].pop("suspend", None)
        if sum(self.nodes.values()) < max(placement.nodes for placement in self.job.spec().placement):
            self.nodes = dict.fromkeys(self.nodes, True)
        for _ in range(40):
            self.now += timedelta(seconds=100)
            self.run_pass()
            self.controllers()
            self.schedule()
            self.end_well(constants.STAGE_PREPARE, constants.STAGE_TRAIN)
            if self.job.status.phase in ("Complete", "Failed", "Suspended") and self._is_at_rest():
                break
        else:
            raise AssertionError(f"no rest: {self.job.status.phase}: {self.job.status.message}")
        for _ in range(3):
            self.now += timedelta(seconds=100)
            self.controllers()
            actions = self.run_pass()
            assert actions.status is None, actions.status
            assert not actions.create
            assert not actions.delete
        status = self.job.status
        assert kstatus(status, self.job.generation) == ("Failed" if status.phase == "Failed" else "Current")
        assert not self._alive(), f"the job rests, but {self._alive()} do not"

    def _is_at_rest(self) -> bool:
        actions = reconcile(self.observe(), self.now)
        return actions.status is None and not actions.create and not actions.delete and not self._alive()

    def _alive(self) -> list[str]:
        return [
            name
            for name, pod in self.pods.items()
            if pod["status"]["phase"] in ("Pending", "Running") and self.nodes.get(pod["spec"].get("nodeName"), True)
        ]
