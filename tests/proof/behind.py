"""Behind the operator's back: each child is deleted or edited in each phase, and the job comes to its end all the same.

Nothing that somebody does to a child counts as a failure of the job, no attempt is started twice, no two gangs of a job
run at the same time, and the status says why an attempt was lost. After ``kubectl delete ftj`` nothing is left, except
what somebody took the owner reference from while nothing of it ran: that is how Kubernetes is told to keep a thing
(``--cascade=orphan`` does it too). It holds no node, and our labels still find it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from e2e.kubectl import Json
from finetune_operator import constants
from finetune_operator.constants import Cause, Reason
from finetune_operator.core.blame import SETTLE_SECONDS
from proof.scenarios import Scenario, reason_of
from proof.stage import NEW_KINDS_SECONDS, NotReached, Stage, status_of
from proof.sweep import Case

Story = Callable[[Stage], Awaitable[None]]

_JOB_NAME = "batch.kubernetes.io/job-name"

MOMENT = 0.4
"""Seconds in which the operator sees what was done; a pass takes a tenth of it."""

BESIDE = 1.0
"""Seconds in which a gang would start beside pods that nobody controls any more."""

CHILDREN = {
    "snapshot": ("configmaps", "run"),
    "prepare-config": ("configmaps", "prepare-*"),
    "prepare-job": ("jobs", "prepare"),
    "prepare-pod": ("pods", "prepare-*"),
    "config": ("configmaps", "a1-*"),
    "service": ("services", "a1"),
    "job": ("jobs", "a1"),
    "pod-0": ("pods", "a1-0-*"),
    "pod-1": ("pods", "a1-1-*"),
}
"""Word for a child -> its collection, and its name after that of the FineTuneJob."""

PHASES = {
    "preparing": ("snapshot", "prepare-config", "prepare-job", "prepare-pod"),
    "queued": tuple(CHILDREN),
    "running": tuple(CHILDREN),
    "interrupted": ("snapshot", "prepare-config", "prepare-job", "prepare-pod", "config", "service"),
    "suspended": ("snapshot", "prepare-config", "config", "service"),
    "finished": tuple(CHILDREN),
}
"""Phase -> the children that there are. Queued: the gang's pods wait for nodes; interrupted: the next gang waits its
time after one that failed."""


# --- what is done -------------------------------------------------------------------------------------------------


async def _delete(stage: Stage, child: Json) -> None:
    await stage.remove(child)


async def _delete_by_force(stage: Stage, pod: Json) -> None:
    """What people do to a pod that hangs in Terminating."""
    await stage.remove(pod, gracePeriodSeconds=0)


async def _delete_but_keep_pods(stage: Stage, job: Json) -> None:
    """``kubectl delete --cascade=orphan``."""
    await stage.remove(job, propagationPolicy="Orphan")


async def _remove_labels(stage: Stage, child: Json) -> None:
    """Another one stays: a Job without any gets those of its template back from the API server."""
    ours = {constants.MANAGED_BY_LABEL} | {key for key in _labels(child) if key.startswith(constants.GROUP)}
    await stage.edit(child, {"metadata": {"labels": {**dict.fromkeys(ours), "example.org/mine": "yes"}}})


async def _remove_owner(stage: Stage, child: Json) -> None:
    await stage.edit(child, {"metadata": {"ownerReferences": None}})


async def _annotate(stage: Stage, child: Json) -> None:
    await stage.edit(child, {"metadata": {"annotations": {"example.org/note": "looked at"}}})


async def _suspend(stage: Stage, job: Json) -> None:
    """And back: the field belongs to queues, so the operator waits for whoever set it."""
    await stage.edit(job, {"spec": {"suspend": True}})
    await stage.until(lambda job: status_of(job)["phase"] in ("Queued", "Preparing"), "it waits")
    deadline = time.monotonic() + stage.seconds
    while any(_labels(pod).get(_JOB_NAME) == job["metadata"]["name"] for pod in await stage.namesakes("pods")):
        assert time.monotonic() < deadline, "the pods of a suspended Job do not go"
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # the API keeps whole seconds, and they tell the pods of before from those of after
    await stage.edit(job, {"spec": {"suspend": False}})


async def _shrink(stage: Stage, job: Json) -> None:
    await stage.edit(job, {"spec": {"parallelism": 1}})


async def _replace_by_nonsense(stage: Stage, snapshot: Json) -> None:
    """The status says that nobody can read it and what to do; then somebody does that."""
    await stage.replace(snapshot, data={"snapshot.json": "{}"})
    if status_of(await stage.job())["phase"] == "Complete":
        return
    stage.wake()
    job = await stage.until(lambda job: _condition(job, "Stalled")["status"] == "True", "it is stalled")
    assert _condition(job, "Stalled")["reason"] == Reason.SNAPSHOT_UNREADABLE
    await stage.remove(snapshot)


async def _delete_after_an_edit(stage: Stage, snapshot: Json) -> None:
    """Nobody knows any more what the run was accepted with, and the spec asks for something else by now."""
    await stage.patch(training={"maxSteps": 50, "globalBatchSize": 8})
    await stage.remove(snapshot)


ACTS = {
    "deleted": _delete,
    "forced": _delete_by_force,
    "orphaning": _delete_but_keep_pods,
    "unlabelled": _remove_labels,
    "disowned": _remove_owner,
    "annotated": _annotate,
    "suspended": _suspend,
    "shrunk": _shrink,
    "garbled": _replace_by_nonsense,
    "outdated": _delete_after_an_edit,
}


def _acts(phase: str, child: str) -> Iterable[str]:
    """What can be done to this child in this phase, and means something."""
    yield from ("deleted", "unlabelled", "disowned", "annotated")
    collection, _ = CHILDREN[child]
    is_at_work = phase != "queued" or child.startswith("prepare")
    if collection == "jobs" and is_at_work:  # pods that never ran would wait for a gang that nobody completes
        yield "orphaning"
    if collection == "pods" and is_at_work:  # one without a node goes at once in any case
        yield "forced"
    if child == "snapshot":
        yield "garbled"
    if child == "snapshot" and phase != "finished":
        yield "outdated"
    if (phase, child) in (("preparing", "prepare-job"), ("queued", "job"), ("running", "job")):
        yield "suspended"
    if (phase, child) in (("queued", "job"), ("running", "job")):
        yield "shrunk"


# --- what comes of it ---------------------------------------------------------------------------------------------

_NOTHING = ""

LOST = {
    ("queued", "snapshot", "outdated"): {Cause.SUPERSEDED},
    ("queued", "job", "deleted"): {Cause.UNKNOWN},
    ("queued", "job", "unlabelled"): {Cause.UNKNOWN},
    ("queued", "job", "disowned"): {Cause.UNKNOWN},
    # a pod without a node goes at once: whether a pass still finds it is the watches' to say
    ("queued", "job", "shrunk"): {Cause.UNKNOWN, Cause.PREEMPTED},
    ("queued", "pod-0", "deleted"): {Cause.UNKNOWN, Cause.PREEMPTED},
    ("queued", "pod-1", "deleted"): {Cause.UNKNOWN, Cause.PREEMPTED},
    # the Job controller adopts it, or has made another one in its place by then
    ("queued", "pod-0", "disowned"): {_NOTHING, Cause.UNKNOWN, Cause.PREEMPTED},
    ("queued", "pod-1", "disowned"): {_NOTHING, Cause.UNKNOWN, Cause.PREEMPTED},
    ("running", "snapshot", "outdated"): {Cause.SUPERSEDED},
    # whether the Job or its pods are seen to go first is the watches' to say
    ("running", "job", "deleted"): {Cause.UNKNOWN, Cause.PREEMPTED},
    ("running", "job", "orphaning"): {Cause.UNKNOWN},
    ("running", "job", "unlabelled"): {Cause.UNKNOWN},
    ("running", "job", "disowned"): {Cause.UNKNOWN},
    ("running", "job", "shrunk"): {Cause.PREEMPTED},
    ("running", "pod-0", "deleted"): {Cause.PREEMPTED},
    ("running", "pod-1", "deleted"): {Cause.PREEMPTED},
    # its grace period is over at once, so it is a matter of who is faster
    ("running", "pod-0", "forced"): {Cause.PREEMPTED, Cause.NODE_LOST},
    ("running", "pod-1", "forced"): {Cause.PREEMPTED, Cause.NODE_LOST},
    # the Job controller adopts it, or has made another one in its place by then
    ("running", "pod-0", "disowned"): {_NOTHING, Cause.PREEMPTED, Cause.UNKNOWN},
    ("running", "pod-1", "disowned"): {_NOTHING, Cause.PREEMPTED, Cause.UNKNOWN},
}
"""What ends the attempt, and the causes that may be recorded; nothing else ends it."""

_PODS = {"prepare-job": ("prepare-pod",), "job": ("pod-0", "pod-1")}


def _kept(phase: str, child: str, act: str) -> tuple[str, ...]:
    """What has no owner any more and is at rest: it may stay when the FineTuneJob is deleted."""
    if act == "orphaning":
        return _PODS[child]
    if act != "disowned":
        return ()
    if child == "snapshot" and phase != "finished":
        return ()  # made anew
    if phase in ("suspended", "interrupted") and child in ("config", "service"):
        return ()  # swept when the next attempt starts
    gang = ("job", "pod-0", "pod-1")
    at_work = {"preparing": ("prepare-job", "prepare-pod"), "queued": gang, "running": gang}
    if child in at_work.get(phase, ()):
        return ()  # made anew, or adopted by the Job controller
    return (child, *_PODS.get(child, ()))


@dataclass(frozen=True)
class Behind:
    """One child, one phase, one thing that is done to it."""

    phase: str
    child: str
    act: str

    @property
    def name(self) -> str:
        """Also that of the FineTuneJob."""
        return f"{self.phase}-{self.child}-{self.act}"

    async def play(self, stage: Stage) -> None:
        """The whole story, and what must hold at its end."""
        await _REACH[self.phase](stage)
        kept = {await self._name(stage, child) for child in _kept(self.phase, self.child, self.act)}
        lost = LOST.get((self.phase, self.child, self.act), {_NOTHING})

        await ACTS[self.act](stage, await find(stage, self.child))
        await _let_it_be_seen(stage)
        if self.phase == "queued":
            stage.pass_time(SETTLE_SECONDS + 5)  # better evidence of pods that never ran does not come
        if _NOTHING not in lost:
            await stage.until(lambda job: bool(status_of(job)["attempts"][0]["cause"]), "the attempt is lost")
            await self._see_the_next_attempt(stage)
        elif self.phase == "running" and lost == {_NOTHING}:
            stage.pass_time(SETTLE_SECONDS + 5)  # it is not only a matter of time
            await _let_it_be_seen(stage)
        await _GO_ON.get(self.phase, _go_on)(stage)
        job = await stage.until_over()
        self._judge(status_of(job), lost)

        await _let_it_be_seen(stage)
        await stage.delete()
        await _until_only(stage, kept)

    async def _see_the_next_attempt(self, stage: Stage) -> None:
        """The operator ends what is left of the lost gang; pods that somebody wants to keep it waits for."""
        if self.act == "orphaning":
            await asyncio.sleep(BESIDE)
        else:
            await stage.until(lambda job: status_of(job)["totals"]["attempts"] == 2, "the next attempt")

    async def _name(self, stage: Stage, child: str) -> str:
        name: str = (await find(stage, child))["metadata"]["name"]
        return name

    def _judge(self, status: Json, lost: set[str]) -> None:
        assert status["phase"] == "Complete", status["message"]
        failures = 1 if self.phase == "interrupted" and self.act != "outdated" else 0  # those of the run
        assert status["totals"].get("failures", 0) == failures, status["totals"]
        *earlier, last = status["attempts"]
        expected = {"suspended": {Cause.SUSPENDED}, "interrupted": {Cause.APPLICATION}}.get(self.phase, lost)
        causes = [attempt["cause"] for attempt in earlier] or [_NOTHING]
        assert len(causes) == 1, earlier
        assert causes[0] in expected, f"ended by {causes[0]!r}, expected {expected}: {earlier}"
        assert not last.get("cause"), last
        assert all(attempt["message"] for attempt in earlier), earlier


# --- how a phase is reached, and left -----------------------------------------------------------------------------


async def _to_preparing(stage: Stage) -> None:
    stage.kubelets.hold_checks(stage.name)
    await find(stage, "prepare-pod", pod_phase="Running")


async def _to_queued(stage: Stage) -> None:
    await stage.cordon(True)
    await stage.until(lambda job: reason_of(job, "Running") == "Unschedulable", "the scheduler finds no node")


async def _to_interrupted(stage: Stage) -> None:
    stage.kubelets.ends(stage.name, 1, 1, {"outcome": "Failed", "exitCode": 1, "message": "no such column"})
    await stage.until(lambda job: status_of(job).get("phase") == "Interrupted", "the next attempt waits")
    deadline = time.monotonic() + stage.seconds
    while any(_is_of_gang(job) for job in await stage.children("jobs")):
        assert time.monotonic() < deadline, "the gang that failed does not go"
        await asyncio.sleep(0.1)


async def _to_running(stage: Stage) -> None:
    stage.kubelets.hold(stage.name)
    await stage.until_running(1)


async def _to_suspended(stage: Stage) -> None:
    await _to_running(stage)
    await stage.patch(suspend=True)
    await stage.until(lambda job: "resume from the newest" in status_of(job)["message"], "suspended")


async def _to_the_end(stage: Stage) -> None:
    await stage.until_over()


_REACH: dict[str, Story] = {
    "preparing": _to_preparing,
    "queued": _to_queued,
    "interrupted": _to_interrupted,
    "running": _to_running,
    "suspended": _to_suspended,
    "finished": _to_the_end,
}


async def _go_on(stage: Stage) -> None:
    stage.kubelets.release(stage.name)
    await stage.patch(suspend=False)


async def _open_nodes(stage: Stage) -> None:
    await stage.cordon(False)
    await _go_on(stage)


async def _let_time_pass(stage: Stage) -> None:
    stage.pass_time(60)
    await _go_on(stage)


_GO_ON: dict[str, Story] = {"queued": _open_nodes, "interrupted": _let_time_pass}
"""How those phases are left that only time or nodes end."""


async def _let_it_be_seen(stage: Stage) -> None:
    """Not every child is watched; what is not is read when there is something to do, and at the resync."""
    stage.wake()
    await asyncio.sleep(MOMENT)


# --- looking ------------------------------------------------------------------------------------------------------


async def find(stage: Stage, child: str, *, pod_phase: str = "") -> Json:
    """A child, once it is there, and in this phase.

    Raises:
        NotReached: it is not within the stage's time.
    """
    collection, pattern = CHILDREN[child]
    deadline = time.monotonic() + stage.seconds
    while time.monotonic() < deadline:
        for item in await stage.namesakes(collection):
            name = item["metadata"]["name"].removeprefix(f"{stage.name}-")
            if fnmatchcase(name, pattern) and (not pod_phase or item["status"]["phase"] == pod_phase):
                return item
        await asyncio.sleep(0.05)
    raise NotReached(f"{stage.name}: no {child} {pod_phase}")


async def _until_only(stage: Stage, kept: set[str]) -> None:
    """Everything that was made for the job is gone, except what may stay, which is removed here."""
    deadline = time.monotonic() + stage.seconds + NEW_KINDS_SECONDS
    while await stage.job() or {item["metadata"]["name"] for item in await stage.namesakes()} - kept:
        if time.monotonic() > deadline:
            left = [item["metadata"]["name"] for item in await stage.namesakes()]
            raise NotReached(f"{stage.name}: left over: {left}, may stay: {kept}")
        await asyncio.sleep(0.1)
    for item in await stage.namesakes():
        await stage.remove(item)


def _is_of_gang(job: Json) -> bool:
    return _labels(job)[constants.STAGE_LABEL] == constants.STAGE_TRAIN


def _condition(job: Json, type_: str) -> Json:
    return next(condition for condition in status_of(job)["conditions"] if condition["type"] == type_)


def _labels(child: Json) -> dict[str, str]:
    labels: dict[str, str] = child["metadata"]["labels"]
    return labels


# --- all of them --------------------------------------------------------------------------------------------------


def behind_cases() -> list[Case]:
    """Every child in every phase, and everything that is done to it; ``Theatre.run_all`` plays them."""
    stories = itertools.chain.from_iterable(
        (Behind(phase, child, act) for act in _acts(phase, child)) for phase in PHASES for child in PHASES[phase]
    )
    return [
        Case(Scenario(f"behind-{story.name}", story.play, expected="", has_own_nodes=story.phase == "queued"))
        for story in stories
    ]
