"""Fresh reads of one job and its surroundings -> ``Observed``.

Two lists by label (Jobs and Pods), the job itself and its snapshot are read on every pass. The runtime, the claims and
the namespace are read only before there is a snapshot; nodes only for pods in doubt.

The lists need not be newer than all that this operator has seen and written (decision 0016): a list of the very newest
waits up to a tenth of a second for the API server to hear from etcd.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_operator import constants
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.runtime import FineTuneRuntimeSpec
from finetune_operator.builders.names import snapshot_name
from finetune_operator.builders.snapshot import SNAPSHOT_KEY
from finetune_operator.core.attempt_record import live_attempt
from finetune_operator.core.blame import ended_without_a_word
from finetune_operator.core.checks import claims
from finetune_operator.core.observed import (
    ChildJob,
    JobObject,
    LogReport,
    NodeState,
    Observed,
    Pod,
    loose_pods,
    own_jobs,
    own_pods,
    still_there,
    vanished,
)
from finetune_operator.core.snapshot import Snapshot
from finetune_operator.core.stored_status import read_status
from finetune_operator.errors import NotFound
from finetune_operator.shell.freshness import Freshness
from finetune_operator.shell.inventory import Inventory, Stock
from finetune_operator.shell.kube import RUNTIMES, Json, Kube, collection, item
from finetune_operator.shell.object_key import ObjectKey
from finetune_trainer.exit_codes import ExitCode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """What the operator knows besides what it reads; all of it is lost with a restart, and nothing depends on it."""

    log: LogReport | None = None
    seen_pods: tuple[Pod, ...] = ()
    busy_pools: frozenset[str] = frozenset()


_LISTS = ("Job", "Pod")

_Surroundings = dict[str, Any]
"""Fields of ``Observed`` that the checks of acceptance need."""


@dataclass(frozen=True)
class _Children:
    jobs: tuple[ChildJob, ...]
    pods: tuple[Pod, ...]
    loose_pods: tuple[Pod, ...]
    snapshot: Snapshot | None
    snapshot_error: str
    versions: Mapping[str, str]
    """Kind -> version of the list."""


@dataclass(frozen=True)
class _Known:
    """A FineTuneJob as it was read or written last: as long as it is the same, only its children have news."""

    uid: str
    version: str


_Floors = Mapping[str, str]
"""Kind -> the newest version that was known before a read was asked for."""


def _known(job: Json) -> _Known:
    return _Known(job["metadata"]["uid"], job["metadata"]["resourceVersion"])


def _version(answer: Json) -> str:
    version: str = answer["metadata"].get("resourceVersion", "")
    return version


def _not_older_than(version: str) -> dict[str, str]:
    return {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"} if version else {}


Listed = Callable[[ObjectKey, str, str, str], None]
"""Told of each pod that a pass has listed: whose it is, kind, uid and version."""


def _tell_nobody(key: ObjectKey, kind: str, uid: str, version: str) -> None:
    pass


class Gatherer:
    """Reads the world of one job at a time."""

    def __init__(self, kube: Kube, inventory: Inventory, listed: Listed = _tell_nobody) -> None:
        self._kube = kube
        self._listed = listed
        self._known: dict[ObjectKey, _Known] = {}
        self._inventory = inventory
        self.freshness = Freshness()

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self._known.pop(key, None)
        self.freshness.forget(key)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._known)

    def wrote(self, key: ObjectKey, job: Json) -> None:
        """This is the FineTuneJob as we have just left it."""
        self._known[key] = _known(job)
        self.freshness.knows(key, constants.JOB_KIND, job["metadata"]["resourceVersion"])

    async def gather(self, key: ObjectKey, memory: Memory) -> Observed | None:
        """One frozen view; None: the job does not exist.

        Raises:
            Conflict: an answer is older than what was seen before.
        """
        floors = {kind: self.freshness.newest(key, kind) for kind in (constants.JOB_KIND, *_LISTS)}
        try:
            job, children, surroundings = await self._read_job_and_children(key, floors)
        except NotFound:
            return None
        for kind, version in children.versions.items():
            self._check(key, kind, version, floors)
        # Not before: as long as the children have not been read as well, somebody else's change is not known. And a
        # read that goes on after another one has failed may remember nothing of a job that is forgotten.
        self._known[key] = _Known(job.uid, job.resource_version)
        pods = await self._with_unlabelled(key, children.pods, children.loose_pods, memory.seen_pods)
        gone = vanished(memory.seen_pods, (*pods, *children.loose_pods), children.jobs)
        if children.snapshot is not None:
            surroundings = {}
        elif not surroundings:
            surroundings = await self._surroundings(job)
        return Observed(
            job=job,
            jobs=children.jobs,
            pods=pods,
            loose_pods=children.loose_pods,
            snapshot=children.snapshot,
            snapshot_error=children.snapshot_error,
            nodes=await self._nodes_in_doubt(job, pods, gone),
            vanished_pods=gone,
            busy_pools=memory.busy_pools,
            log=memory.log,
            **surroundings,
        )

    async def _read_job_and_children(
        self, key: ObjectKey, floors: _Floors
    ) -> tuple[JobObject, _Children, _Surroundings]:
        """At the same time, if nobody else has changed the job since; raises ``NotFound``.

        The surroundings as well for a job that is new; else none.
        """
        stock = self._inventory.pop(key, floors)
        if stock is not None:
            job = self._parse(key, stock.job, floors)
            return job, await self._stocked_children(key, stock), {}
        path = item("FineTuneJob", key.namespace, key.name)
        known = self._known.pop(key, None)
        if known is None:
            raw = await self._kube.get(path)
        else:
            children = self._read_children(key, known.uid, floors)
            raw, found = await asyncio.gather(self._kube.get(path), children)
            if _known(raw) == known:
                return self._parse(key, raw, floors), found, {}
        job = self._parse(key, raw, floors)
        if job.status.observed_generation >= 0:
            return job, await self._read_children(key, job.uid, {}), {}
        # What was never accepted has no children yet, but those of an operator that died: to create them again is safe.
        any_will_do = dict.fromkeys(_LISTS, "0")
        return job, *await asyncio.gather(self._read_children(key, job.uid, any_will_do), self._surroundings(job))

    def _parse(self, key: ObjectKey, raw: Json, floors: _Floors) -> JobObject:
        self._check(key, constants.JOB_KIND, raw["metadata"]["resourceVersion"], floors)
        return parse_job(raw)

    async def _read_children(self, key: ObjectKey, uid: str, at_least: _Floors) -> _Children:
        """Lists of these versions or newer ones; no version: of the newest there is."""
        # By uid as well: the children of a namesake that was deleted a moment ago are not ours.
        selector = {"labelSelector": f"{constants.JOB_LABEL}={key.name},{constants.JOB_UID_LABEL}={uid}"}
        jobs, pods = (
            self._kube.get(collection(kind, key.namespace), {**selector, **_not_older_than(at_least.get(kind, ""))})
            for kind in _LISTS
        )
        job_list, pod_list, (snapshot, error) = await asyncio.gather(jobs, pods, self._read_snapshot(key, uid))
        for raw in pod_list["items"]:
            self._listed(key, "Pod", raw["metadata"]["uid"], raw["metadata"]["resourceVersion"])
        return _Children(
            jobs=own_jobs(job_list["items"], uid),
            pods=own_pods(pod_list["items"]),
            loose_pods=loose_pods(pod_list["items"]),
            snapshot=snapshot,
            snapshot_error=error,
            versions={"Job": _version(job_list), "Pod": _version(pod_list)},
        )

    async def _stocked_children(self, key: ObjectKey, stock: Stock) -> _Children:
        snapshot = await self._read_snapshot(key, stock.job["metadata"]["uid"])
        versions = {kind: stock.versions[kind] for kind in _LISTS}
        found = stock.children
        return _Children(tuple(found.jobs), tuple(found.pods), tuple(found.loose_pods), *snapshot, versions)

    def _check(self, key: ObjectKey, kind: str, version: str, floors: _Floors) -> None:
        self.freshness.check(key, kind, version, floors[kind], time.monotonic())

    async def _with_unlabelled(
        self, key: ObjectKey, listed: tuple[Pod, ...], loose: tuple[Pod, ...], known: tuple[Pod, ...]
    ) -> tuple[Pod, ...]:
        """And those that a watch showed at work, and that are missing only because somebody removed our labels.

        They are asked for by the Job controller's own label, once, whatever they are called.
        """
        present = {pod.uid for pod in (*listed, *loose)}
        missed = [pod for pod in known if pod.uid not in present and not pod.is_terminal]
        if not missed:
            return listed
        makers = ",".join(sorted({pod.job_uid for pod in missed}))
        selector = {"labelSelector": f"{constants.JOB_CONTROLLER_LABEL} in ({makers})"}
        floors = {"Pod": self.freshness.newest(key, "Pod")}
        found = await self._kube.get(collection("Pod", key.namespace), selector)
        self._check(key, "Pod", _version(found), floors)
        return (*listed, *still_there(missed, found["items"]))

    async def _read_snapshot(self, key: ObjectKey, owner_uid: str) -> tuple[Snapshot | None, str]:
        """The immutable snapshot, or why it does not parse; read on every pass to notice a lost one.

        It is not kept: to parse it takes 30 us, and a thousand of them would be 26 MB.
        """
        try:
            raw = await self._kube.get(item("ConfigMap", key.namespace, snapshot_name(key.name)))
        except NotFound:
            return None, ""
        if not _is_owned_by(raw, owner_uid) or "deletionTimestamp" in raw["metadata"]:
            return None, ""
        try:
            return Snapshot.from_json(raw.get("data", {}).get(SNAPSHOT_KEY, "")), ""
        except ValidationError as error:
            return None, describe_validation_error(error, SNAPSHOT_KEY)

    async def _surroundings(self, job: JobObject) -> _Surroundings:
        """None of a job whose spec does not parse: nothing else is looked at before that."""
        if job.spec is None:
            return {}
        (runtime, error), namespace = await asyncio.gather(
            self._read_runtime(job.spec.runtime_ref.name), self._kube.get(f"/api/v1/namespaces/{job.namespace}")
        )
        missing = await self._missing_claims(job.namespace, job.spec, runtime)
        return {
            "runtime": runtime,
            "runtime_error": error,
            "namespace_labels": namespace["metadata"].get("labels", {}),
            "missing_claims": missing,
        }

    async def _read_runtime(self, name: str) -> tuple[FineTuneRuntimeSpec | None, str]:
        try:
            raw = await self._kube.get(f"{RUNTIMES}/{name}")
            return FineTuneRuntimeSpec.model_validate(raw["spec"]), ""
        except NotFound:
            return None, ""
        except ValidationError as error:
            return None, describe_validation_error(error, "spec")

    async def _missing_claims(
        self, namespace: str, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec | None
    ) -> frozenset[str]:
        names = sorted(set(claims(spec, runtime).values())) if runtime is not None else []
        found = await asyncio.gather(*(self._exists(item("PersistentVolumeClaim", namespace, name)) for name in names))
        return frozenset(name for name, exists in zip(names, found, strict=True) if not exists)

    async def _exists(self, path: str) -> bool:
        try:
            await self._kube.get(path)
        except NotFound:
            return False
        return True

    async def _nodes_in_doubt(
        self, job: JobObject, pods: tuple[Pod, ...], gone: tuple[Pod, ...]
    ) -> dict[str, NodeState]:
        """Those of pods that are asked to go, that went unseen, or that may be the one that its peers lost.

        While an attempt's end is not recorded also those of its pods that were killed: their nodes may tell by whom.
        """
        live = live_attempt(job.status)
        has_lost_peer = any(pod.exit_code == ExitCode.PEER_LOST for pod in (*pods, *gone))

        def is_in_doubt(pod: Pod) -> bool:
            is_live = live is not None and (pod.stage, pod.attempt) == (constants.STAGE_TRAIN, live.number)
            if pod.is_terminal:
                return is_live and ended_without_a_word(pod)
            is_asked_to_go = bool(pod.disruption_reason) or (is_live and pod.deletion_time is not None)
            return is_asked_to_go or pod.is_vanished or has_lost_peer

        names = sorted({pod.node for pod in (*pods, *gone) if pod.node and is_in_doubt(pod)})[:_MOST_NODES]
        states = await asyncio.gather(*(self._node(name) for name in names))
        return dict(zip(names, states, strict=True))

    async def _node(self, name: str) -> NodeState:
        try:
            raw = await self._kube.get(f"/api/v1/nodes/{name}")
        except NotFound:
            return NodeState(exists=False, ready=False)
        conditions = raw.get("status", {}).get("conditions", [])
        return NodeState(
            exists=True,
            ready=any(c["type"] == "Ready" and c["status"] == "True" for c in conditions),
            taints=frozenset(taint["key"] for taint in raw.get("spec", {}).get("taints", [])),
        )


_MOST_NODES = 32
"""Of one pass: what is not known about the others is Unknown, and no reason to blame anybody."""


def parse_job(raw: Json) -> JobObject:
    """The API object -> our view of it; a spec that does not parse becomes an error text."""
    meta = raw["metadata"]
    spec, error = None, ""
    try:
        spec = FineTuneJobSpec.model_validate(raw.get("spec", {}))
    except ValidationError as invalid:
        error = describe_validation_error(invalid, "spec")
    status, invalid_fields = read_status(raw.get("status", {}))
    if invalid_fields:
        logger.error(
            "%s/%s: stored status does not parse, left out: %s", meta["namespace"], meta["name"], invalid_fields
        )
    return JobObject(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        resource_version=meta["resourceVersion"],
        spec=spec,
        spec_error=error,
        status=status,
        labels=meta.get("labels", {}),
        is_being_deleted="deletionTimestamp" in meta,
    )


def describe_validation_error(error: ValidationError, root: str) -> str:
    """Field, reason and value of the first violation; ``root`` is the field that was parsed."""
    first = error.errors()[0]
    path = ".".join([root, *map(str, first["loc"])])
    return f"{path}: {first['msg']}, is {str(first.get('input'))[:100]!r}"


def _is_owned_by(raw: Json, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in raw["metadata"].get("ownerReferences", []))
