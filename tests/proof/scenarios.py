"""The stories that the operator must bring to the same end, wherever it dies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from e2e.kubectl import Json
from jobs import a_job
from proof.stage import Stage

Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """A job and what happens to it."""

    name: str
    play: Play
    """From after the creation until the job is at rest."""
    spec: Json = field(default_factory=dict)
    expected: str = "Complete"
    """Phase at the end; empty: there is no job any more."""

    has_own_nodes: bool = False
    """It has the two nodes of its lane for itself, each with room for one training pod."""

    def manifest(self, name: str, lane: str) -> Json:
        """The job as the user applies it."""
        own = {"placement": [{"pool": lane, "nodes": 2}]} if self.has_own_nodes else {}
        return a_job(name, runtimeRef={"name": "proof"}, **own, **self.spec)


async def _undisturbed(stage: Stage) -> None:
    await stage.until_over()


async def _preemption(stage: Stage) -> None:
    stage.kubelets.hold(stage.name)
    await stage.until_running(1)
    await stage.evict(1, 1)
    await stage.until(lambda job: job["status"]["totals"]["attempts"] == 2, "attempt 2")
    stage.kubelets.release(stage.name)
    await stage.until_over()


async def _out_of_memory(stage: Stage) -> None:
    stage.kubelets.ends(stage.name, 1, 77, {"outcome": "Failed", "exitCode": 77, "message": "out of memory"})
    await stage.until_over()


async def _user_error(stage: Stage) -> None:
    fault = {"field": "spec.dataset", "value": "line 7", "message": "must be JSON", "remedy": "mend the line"}
    stage.kubelets.ends(stage.name, 0, 65, {"outcome": "Failed", "fault": fault})
    await stage.until_over()


async def _suspension(stage: Stage) -> None:
    stage.kubelets.hold(stage.name)
    await stage.until_running(1)
    await stage.patch(suspend=True)
    await stage.until(lambda job: "resume from the newest" in job["status"]["message"], "suspended")
    await stage.patch(suspend=False)
    stage.kubelets.release(stage.name)
    await stage.until_over()


async def _new_run(stage: Stage) -> None:
    stage.kubelets.hold(stage.name)
    await stage.until_running(1)
    await stage.patch(runId="2")
    await stage.until(lambda job: (job["status"].get("run") or {}).get("id") == "2", "the new run")
    stage.kubelets.release(stage.name)
    await stage.until_over()


async def _deletion(stage: Stage) -> None:
    stage.kubelets.hold(stage.name)
    await stage.until_running(1)
    await stage.delete()
    await stage.until_nothing_is_left()


async def _fallback(stage: Stage) -> None:
    await stage.until(lambda job: reason_of(job, "Running") == "Unschedulable", "the scheduler finds no node")
    stage.pass_time(6)
    await stage.until_over()


async def _two_gangs(stage: Stage) -> None:
    """There is room for one: if each got one of the nodes, both would wait for ever."""
    other = await stage.create_beside()
    await stage.until_over()
    await other.until_over()


def reason_of(job: Json, condition: str) -> Any:
    """Of a condition; None: there is none."""
    return {c["type"]: c["reason"] for c in job.get("status", {}).get("conditions", [])}.get(condition)


SCENARIOS = (
    Scenario("undisturbed", _undisturbed),
    Scenario("preemption", _preemption),
    Scenario("out-of-memory", _out_of_memory),
    Scenario("user-error", _user_error, expected="Failed"),
    Scenario("suspension", _suspension),
    Scenario("new-run", _new_run),
    Scenario("deletion", _deletion, expected=""),
    Scenario(
        "fallback",
        _fallback,
        spec={
            "placement": [{"pool": "empty", "nodes": 2, "scheduleTimeoutSeconds": 5}, {"pool": "default", "nodes": 2}]
        },
    ),
    Scenario("two-gangs", _two_gangs, has_own_nodes=True),
)
