"""Anything may happen to a job in any order; afterwards it always comes to rest, and no gang ever met another.

Hypothesis plays the cluster, the user and the crashes (``world.py``); what must hold at each write is asserted there.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from finetune_operator import constants
from finetune_operator.builders.names import snapshot_name
from finetune_operator.core.reconcile import reconcile
from makers import JobMaker, a_fault, a_job, last_words
from world import World

pytestmark = pytest.mark.unit

CODES = st.sampled_from([1, 64, 65, 75, 76, 77, 78, 79, 137, 143])
DISRUPTIONS = st.sampled_from(["EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager"])
WHICH = st.integers(0, 7)


class JobMachine(RuleBasedStateMachine):
    """One FineTuneJob on three nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(nodes=st.integers(1, 3), limit=st.integers(0, 2), started=st.booleans())
    def apply(self, nodes: int, limit: int, started: bool) -> None:
        """The user applies a job; half of the stories begin with a gang that runs."""
        job = a_job().on(nodes=nodes).with_backoff_limit(limit).with_training(maxSteps=60)
        self.world = World(job=job)
        for _ in range(6 if started else 0):
            self.world.run_pass()
            self.world.controllers()
            self.world.schedule()
            if self.world.job.status.facts is None:
                self.world.end_well()

    # --- the operator -----------------------------------------------------------------------------------------

    @rule(times=st.integers(1, 3))
    def operator_looks(self, times: int) -> None:
        """Some passes."""
        for _ in range(times):
            self.world.run_pass()

    @rule(calls=st.integers(0, 4))
    def operator_dies(self, calls: int) -> None:
        """After some calls of a pass; the next pass is of a new process, which has read no log."""
        self.world.run_pass(dies_after=calls)
        self.world.log = None

    @rule(run=st.booleans())
    def operator_is_overtaken_by_an_edit(self, run: bool) -> None:
        """Between its reads and its writes: the status write conflicts."""
        observed = self.world.observe()
        self._edit(self.world.job.with_run("edited") if run else self.world.job)
        self.world.execute(observed, reconcile(observed, self.world.now))

    # --- Kubernetes -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 20, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        """Grace periods and delays end."""
        self.world.now += timedelta(seconds=seconds)

    @rule()
    def controllers_run(self) -> None:
        """Pods are created, ended, removed."""
        self.world.controllers()

    @rule()
    def pods_start(self) -> None:
        """Nodes were found."""
        self.world.controllers()
        self.world.schedule()

    @precondition(lambda self: self.world.running())
    @rule()
    def pods_end_well(self) -> None:
        """Prepare found no fault, or the gang is done."""
        self.world.end_well()

    @precondition(lambda self: self.world.running(constants.STAGE_TRAIN))
    @rule(steps=st.integers(1, 20))
    def gang_trains(self, steps: int) -> None:
        """And saves."""
        self.world.train_on(steps)

    # --- faults -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.running())
    @rule(which=WHICH, code=CODES, speaks=st.booleans())
    def a_pod_fails(self, which: int, code: int, speaks: bool) -> None:
        """With or without last words."""
        pods = self.world.running()
        fault = {"fault": a_fault()} if code in (64, 65) else {}
        self.world.ends(pods[which % len(pods)], code, last_words(code, **fault) if speaks else "")

    @precondition(lambda self: self.world.running())
    @rule(which=WHICH)
    def a_pod_is_killed_for_its_memory(self, which: int) -> None:
        """By the kernel."""
        pods = self.world.running()
        self.world.ends(pods[which % len(pods)], 137, reason="OOMKilled")

    @precondition(lambda self: self.world.pods)
    @rule(which=WHICH, reason=DISRUPTIONS)
    def a_pod_is_disrupted(self, which: int, reason: str) -> None:
        """Asked to go."""
        pods = list(self.world.pods.values())
        self.world.disrupt(pods[which % len(pods)], reason)

    @precondition(lambda self: self.world.pods)
    @rule(which=WHICH)
    def a_pod_vanishes(self, which: int) -> None:
        """Its end is never seen."""
        self.world.vanish(sorted(self.world.pods)[which % len(self.world.pods)])

    @rule(which=st.integers(0, 2), is_ready=st.booleans())
    def a_node_comes_or_goes(self, which: int, is_ready: bool) -> None:
        """Its pods are asked to go, which it does not hear."""
        name = f"node-{which}"
        self.world.nodes[name] = is_ready
        for pod in self.world.pods.values():
            if not is_ready and pod["spec"].get("nodeName") == name and pod["status"]["phase"] == "Running":
                self.world.disrupt(pod, "DeletionByTaintManager")

    @rule()
    def the_runtime_is_deleted(self) -> None:
        """Matters only before acceptance."""
        self.world.runtime_exists = False

    # --- people and queues ------------------------------------------------------------------------------------

    def _edit(self, job: JobMaker) -> None:
        self.world.job = replace(job, generation=job.generation + 1)
        self.world.resource_version += 1

    @rule(value=st.booleans())
    def user_suspends_or_resumes(self, value: bool) -> None:
        """``spec.suspend``."""
        self._edit(self.world.job.with_spec(suspend=value))

    @rule(run_id=st.sampled_from(["", "2", "3"]))
    def user_asks_for_a_run(self, run_id: str) -> None:
        """Also for an earlier one again."""
        self._edit(self.world.job.with_run(run_id))

    @rule(seed=st.sampled_from([1, 42]))
    def user_edits_the_spec(self, seed: int) -> None:
        """Which a run in progress ignores."""
        self._edit(self.world.job.with_training(seed=seed))

    @precondition(lambda self: self.world.jobs)
    @rule(which=WHICH)
    def somebody_deletes_a_job(self, which: int) -> None:
        """Behind the operator's back."""
        name = sorted(self.world.jobs)[which % len(self.world.jobs)]
        del self.world.jobs[name]

    @rule()
    def somebody_deletes_the_snapshot(self) -> None:
        """Behind the operator's back."""
        self.world.config_maps.pop(snapshot_name("support"), None)

    @precondition(lambda self: self.world.jobs)
    @rule(value=st.booleans())
    def queue_stops_or_admits(self, value: bool) -> None:
        """``Job.spec.suspend``."""
        for raw in self.world.jobs.values():
            if raw["metadata"]["labels"][constants.STAGE_LABEL] == constants.STAGE_TRAIN:
                raw["spec"]["suspend"] = value

    def teardown(self) -> None:
        """After all that, the job comes to rest."""
        self.world.settle()


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(
    max_examples=2 * settings.default.max_examples, stateful_step_count=25, print_blob=True
)
