"""Anything may happen to a job in any order; afterwards it always comes to rest, and no gang ever met another.

Hypothesis plays the cluster, the user and the crashes (``world.py``); what must hold at each write is asserted there.
Rules are few and take what happens as an argument: many small ones would seldom meet in one story.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from finetune_operator import constants
from finetune_operator.builders.names import snapshot_name
from finetune_operator.core.reconcile import reconcile
from makers import NAME, JobMaker, a_fault, a_job, last_words
from world import Json, World

pytestmark = pytest.mark.unit

CODES = [1, 64, 65, 75, 76, 77, 78, 79, 137, 143]
DISRUPTIONS = ["EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager"]
WHICH = st.integers(0, 7)


class JobMachine(RuleBasedStateMachine):
    """One FineTuneJob on three nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(
        nodes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
        interruptions=st.sampled_from([None, 1, 2]),
        limit=st.integers(0, 2),
        deadline=st.sampled_from([None, None, 600]),
        rounds=st.sampled_from([6, 6, 6, 0]),
    )
    def the_user_applies_a_job(
        self, nodes: list[int], interruptions: int | None, limit: int, deadline: int | None, rounds: int
    ) -> None:
        """Most stories begin with a gang that runs."""
        bounds = {"scheduleTimeoutSeconds": 60, "maxInterruptions": interruptions}
        job = a_job().with_spec(placement=[{"nodes": count, **bounds} for count in nodes])
        job = job.with_spec(activeDeadlineSeconds=deadline)
        self.world = World(job=job.with_backoff_limit(limit).with_training(maxSteps=60))
        self.the_world_turns(rounds)

    # --- what should happen -----------------------------------------------------------------------------------

    @rule(times=st.integers(1, 4))
    def the_world_turns(self, times: int) -> None:
        """Everybody does what is theirs to do; training goes on."""
        for _ in range(times):
            self.world.run_pass()
            self.world.controllers()
            self.world.schedule()
            self.world.end_well(constants.STAGE_PREPARE)

    @rule(who=st.sampled_from(["operator", "watch", "controllers", "scheduler"]))
    def somebody_looks(self, who: str) -> None:
        """Before the others."""
        looks = {
            "operator": self.world.run_pass,
            "watch": self.world.watch,
            "controllers": self.world.controllers,
            "scheduler": self.world.schedule,
        }
        looks[who]()

    @rule(steps=st.sampled_from([0, 1, 20]))
    def the_gang_trains(self, steps: int) -> None:
        """And saves; or is done."""
        if steps:
            self.world.train_on(steps)
        else:
            self.world.end_well(constants.STAGE_TRAIN)

    @rule(seconds=st.sampled_from([1, 20, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        """Grace periods and delays end."""
        self.world.now += timedelta(seconds=seconds)

    # --- what the operator must stand -------------------------------------------------------------------------

    @rule(calls=st.integers(0, 4))
    def the_operator_dies(self, calls: int) -> None:
        """After some calls of a pass; the next pass is of a new process, which has read no log and seen no pod."""
        self.world.run_pass(dies_after=calls)
        self.world.forget()

    @rule(run_id=st.sampled_from(["", "2"]))
    def an_edit_overtakes_the_operator(self, run_id: str) -> None:
        """Between its reads and its writes: the status write conflicts."""
        observed = self.world.observe()
        self._edit(self.world.job.with_run(run_id))
        self.world.execute(observed, reconcile(observed, self.world.now))

    @rule(which=WHICH, code=st.sampled_from(CODES), speaks=st.booleans())
    def a_pod_fails(self, which: int, code: int, speaks: bool) -> None:
        """With or without last words."""
        fault = {"fault": a_fault()} if code in (64, 65) else {}
        for pod in self._one_of(self.world.running(), which):
            self.world.ends(pod, code, last_words(code, **fault) if speaks else "")

    @rule(which=WHICH, how=st.sampled_from(["OOMKilled", "vanishes", *DISRUPTIONS]))
    def a_pod_is_taken_away(self, which: int, how: str) -> None:
        """By the kernel, by nobody knows whom, or by Kubernetes."""
        for pod in self._one_of(list(self.world.pods.values()), which):
            if how == "vanishes":
                self.world.vanish(pod["metadata"]["name"])
            elif how in DISRUPTIONS:
                self.world.disrupt(pod, how)
            elif pod["status"]["phase"] == "Running":
                self.world.ends(pod, 137, reason=how)

    @rule(which=st.integers(0, 2), is_ready=st.booleans())
    def a_node_comes_or_goes(self, which: int, is_ready: bool) -> None:
        """Its pods are asked to go, which they do not hear."""
        name = f"node-{which}"
        self.world.nodes[name] = is_ready
        for pod in self.world.pods.values():
            if not is_ready and pod["spec"].get("nodeName") == name and pod["status"]["phase"] == "Running":
                self.world.disrupt(pod, "DeletionByTaintManager")

    @rule(is_full=st.booleans(), is_pool_busy=st.booleans())
    def others_want_the_nodes(self, is_full: bool, is_pool_busy: bool) -> None:
        """They hold them, or their gang came first."""
        self.world.is_full, self.world.is_pool_busy = is_full, is_pool_busy

    @rule(which=WHICH, what=st.sampled_from(["job", "job", "snapshot", "runtime"]))
    def somebody_deletes(self, which: int, what: str) -> None:
        """Behind the operator's back."""
        if what == "runtime":
            self.world.runtime_exists = False
        elif what == "snapshot":
            self.world.config_maps.pop(snapshot_name(NAME), None)
        else:
            for raw in self._one_of(list(self.world.jobs.values()), which):
                del self.world.jobs[raw["metadata"]["name"]]

    @rule(change=st.sampled_from(["suspend", "resume", "run", "old-run", "seed", "restart"]))
    def the_user_edits(self, change: str) -> None:
        """Also back and forth."""
        job = self.world.job
        edits = {
            "suspend": job.suspended(),
            "resume": job.with_spec(suspend=False),
            "run": job.with_run("2"),
            "old-run": job.with_run(""),
            "seed": job.with_training(seed=1),
            "restart": job.with_training(seed=2).with_spec(onChange="Restart"),
        }
        self._edit(edits[change])

    @rule(is_stopped=st.booleans())
    def the_queue_stops_or_admits(self, is_stopped: bool) -> None:
        """``Job.spec.suspend``."""
        for raw in self.world.jobs.values():
            if raw["metadata"]["labels"][constants.STAGE_LABEL] == constants.STAGE_TRAIN:
                raw["spec"]["suspend"] = is_stopped

    def teardown(self) -> None:
        """After all that, the job comes to rest."""
        self.world.settle()

    def _edit(self, job: JobMaker) -> None:
        self.world.job = replace(job, generation=job.generation + 1)
        self.world.resource_version += 1

    @staticmethod
    def _one_of(items: list[Json], which: int) -> list[Json]:
        return items[which % len(items) :][:1] if items else []


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(
    max_examples=2 * settings.default.max_examples, stateful_step_count=25, print_blob=True
)
