"""A small simulated cluster: API objects, a Job controller, a scheduler, kubelets, nodes that fail.

Objects are kept as the API server would show them, so that the core reads them through its own parsers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_operator import constants
from finetune_operator.core.observed import Pod
from laws import Json, Law
from makers import NOW

GRACE = timedelta(seconds=30)


def text(time: datetime) -> str:
    """As the API server writes it."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def owner_of(pod: Json) -> str:
    """uid of the Job that made it."""
    uid: str = pod["metadata"]["ownerReferences"][0]["uid"]
    return uid


def stage_of(raw: Json) -> str:
    """``prepare`` or ``train``, of a Job or a pod."""
    stage: str = raw["metadata"]["labels"][constants.STAGE_LABEL]
    return stage


@dataclass
class SmallCluster:
    """Jobs and their pods on a few nodes."""

    now: datetime = NOW
    config_maps: dict[str, Json] = field(default_factory=dict)
    services: dict[str, Json] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    pods: dict[str, Json] = field(default_factory=dict)
    nodes: dict[str, bool] = field(default_factory=lambda: {f"node-{i}": True for i in range(3)})
    """Name -> ready."""
    is_full: bool = False
    """Others hold the GPUs of all nodes: training pods find none."""
    uids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- controllers, scheduler, kubelets ---------------------------------------------------------------------

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
        uid = job["metadata"]["uid"]
        others = [name for name, pod in self.pods.items() if owner_of(pod) != uid and self.may_write(pod)]
        is_alone = not others or stage_of(job) != constants.STAGE_TRAIN
        assert is_alone, f"{Law.ONE_GANG}: {job['metadata']['name']} makes a pod beside {others}"
        name = f"{job['metadata']['name']}-{index}-{next(self.uids)}"
        job.setdefault("indexes", {})[str(index)] = "Running"
        self.pods[name] = {
            "metadata": {
                "name": name,
                "uid": f"uid-{next(self.uids)}",
                "ownerReferences": [{"kind": "Job", "uid": uid, "controller": True}],
                "creationTimestamp": text(self.now),
                "labels": dict(job["spec"]["template"]["metadata"]["labels"]),
                "annotations": {constants.COMPLETION_INDEX_ANNOTATION: str(index)},
            },
            "spec": {"configMap": self.config_map_of(job)},
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
            mounted = self.config_maps.get(pod["spec"]["configMap"])
            if self.is_full and stage_of(pod) == constants.STAGE_TRAIN:
                pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "no GPU is free"}]
            elif free and mounted is not None:
                pod["spec"] |= {"nodeName": free[0], "config": mounted["data"]["config.json"]}
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
            and stage in (None, stage_of(pod))
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
        """What the pod read when it started."""
        config: Json = json.loads(pod["spec"]["config"])
        return config

    def may_write(self, pod: Json) -> bool:
        """Whether a training pod has neither ended nor outlived its grace period."""
        deadline = pod["metadata"].get("deletionTimestamp")
        is_alive = pod["status"]["phase"] in ("Pending", "Running") and (deadline is None or text(self.now) < deadline)
        return is_alive and stage_of(pod) == constants.STAGE_TRAIN

    def may_make_writers(self, job: Json) -> bool:
        """Whether a training Job can still come to have pods."""
        return stage_of(job) == constants.STAGE_TRAIN and not self._is_over(job)

    @staticmethod
    def config_map_of(job: Json) -> str:
        """Name of what its pods read."""
        volumes = job["spec"]["template"]["spec"]["volumes"]
        name: str = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
        return name
