"""The stories of one FineTuneJob: anything happens to it, in any order, and then it has to come to rest.

Hypothesis plays the cluster, the user and the crashes (``world.py``); what must hold at each write is asserted there.
Rules are few and take what happens as an argument: many small ones would seldom meet in one story.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import strategies
from finetune_operator import constants
from finetune_operator.builders.names import snapshot_name
from finetune_operator.core.reconcile import reconcile
from laws import Json
from makers import NAME, a_fault, a_job, last_words
from small_cluster import GRACE, stage_of, text
from strategies import Then
from world import World

NOTHING = Then()


class JobMachine(RuleBasedStateMachine):
    """One FineTuneJob on three nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(
        nodes=strategies.NODES,
        interruptions=st.sampled_from([None, 1, 2]),
        limit=st.sampled_from([0, 0, 1, 2]),
        deadline=st.sampled_from([None, None, 600]),
        rounds=st.sampled_from([3, 3, 3, 0]),
    )
    def the_user_applies_a_job(
        self, nodes: list[int], interruptions: int | None, limit: int, deadline: int | None, rounds: int
    ) -> None:
        """Most stories begin with a gang that runs and has saved."""
        bounds = {"scheduleTimeoutSeconds": 60, "maxInterruptions": interruptions}
        job = a_job().with_spec(placement=[{"nodes": count, **bounds} for count in nodes])
        job = job.with_spec(activeDeadlineSeconds=deadline)
        self.world = World(job=job.with_backoff_limit(limit).with_training(maxSteps=60))
        self.the_world_turns(Then(rounds=rounds))
        self.world.train_on(20)

    # --- what should happen -----------------------------------------------------------------------------------

    @rule(then=strategies.THEN)
    def the_world_turns(self, then: Then) -> None:
        """Time passes, and everybody does what is theirs to do; before that the operator may die."""
        self.world.now += timedelta(seconds=then.seconds)
        if then.calls is not None:
            self.world.run_pass(dies_after=then.calls)
            self.world.forget()
        for _ in range(then.rounds):
            self.world.run_pass()
            self.world.controllers()
            self.world.schedule()
            self.world.end_well(constants.STAGE_PREPARE)

    @rule(who=strategies.SOMEBODY)
    def somebody_looks(self, who: str) -> None:
        """Before the others."""
        looks = {
            "operator": self.world.run_pass,
            "watch": self.world.watch,
            "controllers": self.world.controllers,
            "scheduler": self.world.schedule,
        }
        looks[who]()

    @rule(steps=strategies.STEPS, then=strategies.THEN)
    def the_gang_trains(self, steps: int, then: Then) -> None:
        """And saves; or is done."""
        if steps:
            self.world.train_on(steps)
        else:
            self.world.end_well(constants.STAGE_TRAIN)
        self.the_world_turns(then)

    # --- what the operator must stand -------------------------------------------------------------------------

    @rule(event=strategies.MEANWHILE, which=strategies.WHICH, then=strategies.THEN)
    def the_operator_acts_on_the_past(self, event: str | Json, which: int, then: Then) -> None:
        """What it read is true no more when it writes; where it was the job that changed, the status conflicts."""
        observed = self.world.observe()
        actions = reconcile(observed, self.world.now)
        if isinstance(event, dict):
            self.the_user_edits(event, NOTHING)
        elif event in ("operator", "controllers", "scheduler"):
            self.somebody_looks(event)
        elif event == "vanishes":
            self.a_pod_is_taken_away(which, event, NOTHING)
        else:
            self.somebody_meddles(which, event, NOTHING)
        self.world.execute(observed, actions)
        self.the_world_turns(then)

    @rule(
        which=strategies.WHICH,
        code=strategies.CODES,
        words=strategies.WORDS,
        then=strategies.THEN,
        times=strategies.TIMES,
    )
    def a_pod_fails(self, which: int, code: int, words: str, then: Then, times: int) -> None:
        """Without last words, with few, or with more than anybody can use and a checkpoint that is long known."""
        says = {"fault": a_fault()} if code in (64, 65) else {}
        if words == "many":
            says |= {"message": "x" * 3500, "checkpoint": {"step": 1, "uri": "file:///mnt/finetune/storage/c"}}
        for _ in range(times):
            for pod in self._one_of(self.world.running(), which):
                self.world.ends(pod, code, last_words(code, **says) if words != "none" else "")
            self.the_world_turns(then)

    @rule(which=strategies.WHICH, how=strategies.WAYS_TO_GO, then=strategies.THEN)
    def a_pod_is_taken_away(self, which: int, how: str, then: Then) -> None:
        """By the kernel, by nobody knows whom, by a user, or by Kubernetes."""
        for pod in self._one_of(list(self.world.pods.values()), which):
            if how == "vanishes":
                self.world.vanish(pod["metadata"]["name"])
            elif how == "deleted":
                pod["metadata"].setdefault("deletionTimestamp", text(self.world.now + GRACE))
            elif how != "OOMKilled":
                self.world.disrupt(pod, how)
            elif pod["status"]["phase"] == "Running":
                self.world.ends(pod, 137, reason=how)
        self.the_world_turns(then)

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

    @rule(which=strategies.WHICH, what=strategies.MEDDLING, then=strategies.THEN)
    def somebody_meddles(self, which: int, what: str, then: Then) -> None:
        """Behind the operator's back: what it made is deleted, or has another run written on it."""
        if what == "runtime":
            self.world.runtime_exists = False
        elif what == "snapshot":
            self.world.config_maps.pop(snapshot_name(NAME), None)
        for raw in self._one_of(list(self.world.jobs.values()), which):
            if what == "job":
                del self.world.jobs[raw["metadata"]["name"]]
            elif what == "label":
                raw["metadata"]["labels"][constants.RUN_LABEL] = "f" * 12
        self.the_world_turns(then)

    @rule(edit=strategies.EDITS, then=strategies.THEN)
    def the_user_edits(self, edit: Json, then: Then) -> None:
        """What acts at once, and what the run is not to hear of."""
        job = self.world.job.with_spec(**edit)
        self.world.job = replace(job, generation=job.generation + 1)
        self.world.resource_version += 1
        self.the_world_turns(then)

    @rule(is_stopped=st.booleans())
    def the_queue_stops_or_admits(self, is_stopped: bool) -> None:
        """``Job.spec.suspend``."""
        for raw in self.world.jobs.values():
            if stage_of(raw) == constants.STAGE_TRAIN:
                raw["spec"]["suspend"] = is_stopped

    def teardown(self) -> None:
        """After all that, the job comes to rest, unless a law was broken before."""
        if sys.exception() is None:
            self.world.settle()

    @staticmethod
    def _one_of(items: list[Json], which: int) -> list[Json]:
        return items[which % len(items) :][:1] if items else []
