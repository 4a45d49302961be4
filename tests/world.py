"""One FineTuneJob in a small simulated cluster: its user, its operator, which may die, and its trainers.

``execute`` does what the shell does, in the shell's order, and can die in between. What must hold at every write is in
``laws.py``, and asserted here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from finetune_operator import constants
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.builders.names import snapshot_name
from finetune_operator.builders.snapshot import SNAPSHOT_KEY
from finetune_operator.core.actions import Actions, Deletion, Sweep
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
from kstatus import kstatus
from laws import DISRUPTIONS, FAILURES, Json, Law, check_conditions, check_follows, check_forward, check_size
from makers import NAME, NAMESPACE, UID, JobMaker, a_job, a_pool, a_result, a_runtime, last_words, raw_facts
from small_cluster import SmallCluster, owner_of, text

POOL = json.dumps({})
"""``placement_policy.pool_key`` of the one pool, which selects no nodes."""
RUNTIME = a_runtime(a_pool(pricePerGpuHour=2.5))
AT_ONCE = 1
"""Seconds within which a pass that leaves something to do may come back for it."""


def digest_of(*parts: str) -> str:
    """A digest that tells what it was made from, so that a mix-up of two runs shows."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


_snapshot_from = functools.cache(Snapshot.from_json)


@dataclass
class World(SmallCluster):
    """Everything there is."""

    job: JobMaker = field(default_factory=lambda: a_job().on(nodes=2).with_training(maxSteps=60))
    resource_version: int = 1
    runtime_exists: bool = True
    is_pool_busy: bool = False
    """Another job's gang waits for the nodes of every pool."""
    log: LogReport | None = None
    seen: dict[str, Pod] = field(default_factory=dict)
    """uid -> how a watch showed a training pod last; the operator's memory, lost when it dies."""
    steps: dict[str, int] = field(default_factory=dict)
    """Run digest -> newest checkpoint in the store."""

    # what laws have to know
    removed: set[int] = field(default_factory=set)
    """Numbers of attempts that the operator deleted."""
    saved: int = 0
    fruitless: int = 0
    """Disruptions of this run in a row that saved nothing on what was saved before."""
    failed: int = 0
    """Ends of this run that count against ``spec.backoffLimit`` in any case."""
    is_schema_checked: bool = True
    """A third of the time that a story takes."""

    # --- the operator -----------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        """What ``gather`` would return."""
        jobs, pods = own_jobs(self.jobs.values(), UID), own_pods(self.pods.values())
        raw = self.config_maps.get(snapshot_name(NAME))
        snapshot = _snapshot_from(raw["data"][SNAPSHOT_KEY]) if raw else None
        return Observed(
            job=JobObject(
                namespace=NAMESPACE,
                name=NAME,
                uid=UID,
                generation=self.job.generation,
                resource_version=str(self.resource_version),
                spec=self.job.spec(),
                status=self.job.status,
            ),
            jobs=jobs,
            pods=pods,
            snapshot=snapshot,
            runtime=RUNTIME if self.runtime_exists and snapshot is None else None,
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
        before = self._job_uids()
        is_whole = self.execute(observed, actions, dies_after)
        if is_whole and dies_after is None and self._job_uids() == before:  # of a Job that comes or goes watches tell
            self._check_followed(actions)
        newest = observed.job.status.totals.attempts
        self.seen = {uid: pod for uid, pod in self.seen.items() if pod.attempt >= newest}
        return actions

    def _check_followed(self, actions: Actions) -> None:
        """What the operator writes itself wakes nobody: a pass that leaves something to do asks for another."""
        more = reconcile(self.observe(), self.now)
        # of pods whose Job is gone, the Job is deleted in every pass; the pods' end will be shown
        effective = [each for each in more.delete if each.uid is None or each.uid in self._job_uids()]
        left = [*more.create, *effective, *more.sweep, *([more.status] if more.status is not None else [])]
        after, due = (math.inf if each.requeue_after is None else each.requeue_after for each in (actions, more))
        place = f"{self.job.status.phase}: {self.job.status.message}: after {after} s"
        assert not left or after <= AT_ONCE, f"{Law.FOLLOWED}: {place} {left}"
        assert after <= max(due, AT_ONCE), f"{Law.FOLLOWED}: {place}, and not {due}"

    def _job_uids(self) -> set[str]:
        return {raw["metadata"]["uid"] for raw in self.jobs.values()}

    def execute(self, observed: Observed, actions: Actions, dies_after: int | None = None) -> bool:
        """The order of the shell: sweep, create, status, delete (events touch nothing); False: it was cut short."""
        is_turn = actions.waits_for_nodes not in observed.busy_pools
        assert is_turn or not any(each["kind"] == "Job" for each in actions.create), "a gang got past another"
        status = [actions.status] if actions.status is not None else []
        calls: list[Any] = [*actions.sweep, *actions.create, *status, *actions.delete]
        for call in calls[:dies_after]:
            if isinstance(call, Sweep):
                self._sweep(call)
            elif isinstance(call, Deletion):
                self._delete(call)
            elif call is actions.status:
                if observed.job.resource_version != str(self.resource_version):
                    return False  # a conflict: the rest of the pass is dropped
                self._write_status(actions.status)
            elif not self._create(call):
                return False
        if dies_after is None and self.job.status.phase == "Suspended":
            assert not self.jobs, f"{Law.STOPPED}: {sorted(self.jobs)}"
        return True

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
        config = json.loads(self.config_maps[self.config_map_of(manifest)]["data"]["config.json"])
        assert config["run"]["digest"][:12] == labels[constants.RUN_LABEL], "the pods would read another run's config"
        if labels[constants.STAGE_LABEL] == constants.STAGE_PREPARE:
            PrepareConfig.model_validate(config)
            return
        TrainConfig.model_validate(config)
        number, status = int(labels[constants.ATTEMPT_LABEL]), self.job.status
        assert config["attempt"] == number
        assert number not in self.removed, f"{Law.FORWARD}: attempt {number} a second time"
        writers = [name for name, pod in self.pods.items() if self.may_write(pod)]
        rivals = [name for name, raw in self.jobs.items() if self.may_make_writers(raw)]
        assert not writers, f"{Law.ONE_GANG}: attempt {number} is created while {writers} may still write"
        assert not rivals, f"{Law.ONE_GANG}: attempt {number} is created while {rivals} may still make pods"
        check_follows(status, number, labels[constants.RUN_LABEL])
        limit = self.job.spec().backoff_limit
        assert self.failed <= limit, f"{Law.BOUNDED}: attempt {number} after {self.failed} failures of {limit}"
        if status.attempts:
            last = status.attempts[-1]
            # a gang that found no nodes, or needs less memory now, has somewhere else to go
            is_new = last.cause == constants.Cause.NOT_SCHEDULED or last.replanned
            has_failed = last.cause in FAILURES and status.run is not None and last.number >= status.run.first_attempt
            is_urgent = is_new or (self.fruitless < 2 and not has_failed)
            is_calm = is_urgent or self.now - (last.end_time or self.now) >= timedelta(seconds=10)
            assert is_calm, (
                f"{Law.CALM}: {self.fruitless} attempts got nowhere, {last.cause}, and another follows at once"
            )

    def _write_status(self, raw: Json) -> None:
        check_size(raw, is_schema_checked=self.is_schema_checked)
        old, new = self.job.status, FineTuneJobStatus.model_validate(json.loads(json.dumps(raw)))
        check_conditions(new)
        check_forward(old, new)
        if new.facts is not None:
            assert new.run is not None
            assert new.facts.dataset.digest == digest_of("data", new.run.digest), f"{Law.ONE_RUN}: facts"
        if new.result is not None:
            assert new.run is not None
            assert new.result.digest == digest_of("result", new.run.digest), f"{Law.ONE_RUN}: result"
        self._follow_ends(old, new)
        failures, limit = max(new.totals.failures, self.failed), self.job.spec().backoff_limit
        assert failures <= limit + 1, f"{Law.BOUNDED}: {failures} failures of {limit}"
        self.job = self.job.with_status(new)
        self.resource_version += 1

    def _follow_ends(self, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
        """Count for ourselves what the run's attempts ended with."""
        live = [attempt.number for attempt in old.attempts if attempt.end_time is None]
        ended = [attempt for attempt in new.attempts if attempt.number in live and attempt.end_time is not None]
        saved = new.checkpoint.step if new.checkpoint else 0
        is_asked_for = any(attempt.cause in ("Suspended", "Superseded") for attempt in ended)
        is_over = bool(new.attempts and new.attempts[-1].cause)  # now, or its pods say only now what they have saved
        if new.run is None or is_asked_for or (is_over and saved > self.saved):
            self.fruitless = 0
        elif ended:
            self.fruitless += ended[-1].cause in DISRUPTIONS
        if new.run is None or is_over:
            self.saved = saved
        self.failed = 0 if new.run is None else self.failed + sum(attempt.cause in FAILURES for attempt in ended)

    def _sweep(self, sweep: Sweep) -> None:
        labels = {constants.STAGE_LABEL: sweep.stage}
        if sweep.attempt is not None:
            labels[constants.ATTEMPT_LABEL] = str(sweep.attempt)
        for store in (self.config_maps, self.services):
            for name in [name for name, raw in store.items() if labels.items() <= raw["metadata"]["labels"].items()]:
                del store[name]

    def _delete(self, deletion: Deletion) -> None:
        store = self._store(deletion.kind)
        raw = store.get(deletion.name)
        if raw is None or deletion.uid not in (None, raw["metadata"]["uid"]):
            return
        attempt = raw["metadata"]["labels"].get(constants.ATTEMPT_LABEL, "")
        live = [str(each.number) for each in self.job.status.attempts if each.end_time is None]
        assert attempt not in live, f"{Law.EVIDENCE}: attempt {attempt} is deleted before its end is recorded"
        self.removed |= {int(attempt)} if attempt else set()
        del store[deletion.name]

    # --- the trainers -------------------------------------------------------------------------------------------

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
        """Rank 0 of a full gang writes a line and a checkpoint; with fewer than no steps an old line is read again."""
        for pod in self.running(constants.STAGE_TRAIN):
            config = self.config_of(pod)
            run = config["run"]["digest"]
            saved = self.steps.get(run, 0)
            step = max(min(saved + steps, 59), 0)
            self.steps[run] = max(saved, step)
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
        # A gang that is asked to stop does so, or trains for ever.
        stages = () if self.job.spec().suspend else (constants.STAGE_PREPARE, constants.STAGE_TRAIN)
        for _ in range(40):
            self.now += timedelta(seconds=100)
            self.run_pass()
            self.controllers()
            self.schedule()
            self.end_well(*stages)
            if self.job.status.phase in ("Complete", "Failed", "Suspended") and self._is_at_rest():
                break
        else:
            raise AssertionError(f"{Law.REST}: {self.job.status.phase}: {self.job.status.message}")
        for _ in range(3):
            self.now += timedelta(seconds=100)
            self.controllers()
            assert self._is_at_rest(), f"{Law.REST}: {self.job.status.phase}: it rested, and began again"
        status = self.job.status
        assert kstatus(status, self.job.generation) == ("Failed" if status.phase == "Failed" else "Current")

    def _is_at_rest(self) -> bool:
        """Nothing lives, nothing is done, and no further look is asked for."""
        actions = reconcile(self.observe(), self.now)
        done = (*actions.create, *actions.delete, *actions.sweep)
        return not done and actions.status is None and actions.requeue_after is None and not self._alive()

    def _alive(self) -> list[str]:
        return [
            name
            for name, pod in self.pods.items()
            if pod["status"]["phase"] in ("Pending", "Running") and self.nodes.get(pod["spec"].get("nodeName"), True)
        ]
