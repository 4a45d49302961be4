"""Ten minutes of everything at once: a hundred jobs that come and go, random faults, and nothing may be left behind.

The operator is a process behind the faulty proxy, nodes are kwok's. Every job of each of a hundred *slots* is let run,
evicted, suspended, edited, restarted or deleted, and followed by the next one, sometimes of the same name. What the
process holds (memory, open files, tasks of its event loop, jobs that it knows) is read from its own metrics. In the end
all jobs are deleted; it must know none, and hold no more files and tasks than before the first.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from apiserver import MERGE_PATCH, OPERATOR
from audit_log import Creations
from cluster_watch import ClusterWatch
from e2e.kubectl import Json
from eviction import evict
from faulty_proxy import faulty_proxy
from finetune_operator import constants
from finetune_operator.shell.kube import cancel_and_wait
from kwok import a_simulated_job, add_namespace, kwok_cluster
from operator_process import OperatorProcess
from proof.fault_plan import FaultPlan, cut_watches, every_kind, kinds_of
from quantiles import quantile

SLOTS = 100
RUN_SECONDS = 15.0
"""Of each pod."""
FAULT_SHARE = 0.01
"""Of the operator's requests."""
CUT_SECONDS = 2.0
"""One of kopf's watches ends after each of these. It opens another, and half of those meet a fault."""
SETTINGS = {"PROGRESS_SECONDS": "10", "RESYNC_SECONDS": "20"}
"""The resync is what finds events that were lost on the way; in five minutes there would be no time for it."""
SAMPLE_SECONDS = 5.0
END_SECONDS = 240.0
"""After the last fault, for all jobs that are left to complete: some are backing off."""
FORGET_SECONDS = 90.0
"""After all jobs were deleted, for the operator to know none: what was lost on the way it finds at the next resync."""
JOB_BYTES = 16 * 1024
"""What a job that is kept by mistake costs at least: its status, and its gang's pods as they are read, 8 kB of JSON."""
IDLE_SECONDS = 60.0
"""For the operator to close what it needs no more: unused connections are kept for a quarter of a minute."""
SLACK = 3
"""So many files and tasks come and go where nothing happens, as the answer to the question for them."""
NAMESPACE = "soak"
MEASURES = {
    "resident": "process_resident_memory_bytes",
    "files": "process_open_fds",
    "tasks": "finetune_operator_tasks",
}
KNOWN = "finetune_operator_known_jobs"
_PATH = f"/apis/{constants.API_VERSION}/namespaces/{NAMESPACE}/{constants.JOB_PLURAL}"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class Soak:
    """What came of it."""

    seconds: float
    jobs: int = 0
    done: Counter[str] = field(default_factory=Counter)
    """What was done to jobs."""
    faults: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Measure -> its values, in order."""
    idle: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Measure -> its value before the first job, and after the last."""
    left: dict[str, float] = field(default_factory=dict)
    """Table of the operator -> jobs in it when there were none any more."""
    problems: list[str] = field(default_factory=list)

    def quarters(self, measure: str) -> tuple[float, float, float]:
        """Medians of the second quarter, when everything is warm, of the third and of the last one."""
        values = self.samples[measure]
        quarter = max(1, len(values) // 4)
        second, third = values[quarter : 2 * quarter], values[2 * quarter : 3 * quarter]
        return quantile(second, 0.5), quantile(third, 0.5), quantile(values[-quarter:], 0.5)


class Slot:
    """One job after the other."""

    def __init__(self, session: aiohttp.ClientSession, soak: Soak, number: int) -> None:
        self._session, self._soak, self._number = session, soak, number
        self._chance = random.Random(number)
        self.name = ""

    async def run(self, deadline: float) -> None:
        """Until then."""
        await asyncio.sleep(self._chance.uniform(0, 2 * RUN_SECONDS))
        while time.monotonic() < deadline:
            if not self.name or self._chance.random() < 0.75:
                self._soak.jobs += 1
                self.name = f"job-{self._number}-{self._soak.jobs}"
            await self._create()
            await asyncio.sleep(self._chance.uniform(0, 3 * RUN_SECONDS))
            if time.monotonic() > deadline:
                return
            act = self._chance.choice((self._leave, self._evict, self._suspend, self._edit, self._restart))
            self._soak.done[await act()] += 1
            await asyncio.sleep(self._chance.uniform(0, 3 * RUN_SECONDS))
            if time.monotonic() > deadline:
                return
            await self._delete()

    async def _create(self) -> None:
        async with self._session.post(_PATH, json=a_simulated_job(self.name)) as answer:
            assert answer.status == 201, await answer.text()

    async def _delete(self) -> None:
        async with self._session.delete(f"{_PATH}/{self.name}") as answer:
            assert answer.status == 200, await answer.text()

    async def _leave(self) -> str:
        """Alone."""
        return "leave"

    async def _evict(self) -> str:
        """One of the training pods that run, once there are some; one that has ended by then cannot be evicted."""
        selector = f"{constants.JOB_LABEL}={self.name},{constants.STAGE_LABEL}={constants.STAGE_TRAIN}"
        deadline = time.monotonic() + 2 * RUN_SECONDS
        while time.monotonic() < deadline:
            pods = await _list(self._session, _PODS, labelSelector=selector)
            running = [pod for pod in pods if pod["status"]["phase"] == "Running" and not _is_going(pod)]
            if running and await evict(self._session, NAMESPACE, self._chance.choice(running)["metadata"]["name"]):
                return "evict"
            await asyncio.sleep(1)
        return "leave"

    async def _suspend(self) -> str:
        await self._patch(suspend=True)
        await asyncio.sleep(self._chance.uniform(0, RUN_SECONDS))
        await self._patch(suspend=False)
        return "suspend"

    async def _edit(self) -> str:
        await self._patch(training={"learningRate": self._chance.uniform(1e-5, 1e-3)})
        return "edit"

    async def _restart(self) -> str:
        await self._patch(runId=str(self._chance.randrange(10**6)))
        return "restart"

    async def _patch(self, **spec: object) -> None:
        async with self._session.patch(f"{_PATH}/{self.name}", json={"spec": spec}, headers=MERGE_PATCH) as answer:
            assert answer.status == 200, await answer.text()


async def _sample(operator: OperatorProcess, soak: Soak) -> None:
    while True:
        metrics = await asyncio.to_thread(operator.metrics)
        for measure, name in MEASURES.items():
            if name in metrics:
                soak.samples.setdefault(measure, []).append(metrics[name])
        await asyncio.sleep(SAMPLE_SECONDS)


async def run_soak(seconds: float, seed: int = 1) -> Soak:
    """All of it; what is wrong stands in ``problems``."""
    soak, faults = Soak(seconds), FaultPlan(seed, share=FAULT_SHARE, most=10**9)
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        kwok_cluster(Path(name), run_seconds=RUN_SECONDS) as (server, kubectl),
        faulty_proxy(server.url) as proxy,
    ):
        add_namespace(kubectl, NAMESPACE)
        kubeconfig, log = Path(name) / "soak.kubeconfig", Path(name) / "operator.log"
        server.write_kubeconfig(kubeconfig, user=OPERATOR, server=proxy.url)
        operator = OperatorProcess(kubeconfig, log, SETTINGS)
        operator.start()
        proxy.inject_by_request(faults.choose)
        try:
            async with server.session() as session, ClusterWatch(session, NAMESPACE) as watch:
                pests = [
                    asyncio.create_task(_sample(operator, soak)),
                    asyncio.create_task(cut_watches(proxy, CUT_SECONDS, seed)),
                ]
                slots = [Slot(session, soak, number) for number in range(SLOTS)]
                before = await _once_started(operator)
                deadline = time.monotonic() + seconds
                await asyncio.gather(*(slot.run(deadline) for slot in slots))
                for pest in pests:
                    await cancel_and_wait(pest)
                proxy.inject_by_request(None)
                proxy.cut_all_watches()
                await _finish(session, soak)
                await _leave_nothing(session, operator, soak)
                await _come_to_rest(operator, before, soak)
                watch.fail_if_blind()
            twice = {*watch.started_twice(), *(job for _, job, _ in Creations(server.audit_log).more_than_one())}
            soak.problems += [f"{job} was started twice" for job in sorted(twice) if not job.endswith("-prepare")]
        finally:
            operator.stop()
        text = log.read_text()
        soak.problems = [_with_last_lines(problem, text) for problem in soak.problems]
        if "Traceback" in text:
            soak.problems.append(f"Traceback in the log: {text[text.index('Traceback') :][:2000]}")
    soak.faults = kinds_of(faults.met)
    soak.problems += [f"the fault {name} was not met" for name in sorted(every_kind() - soak.faults.keys())]
    soak.problems += _leaks(soak)
    return soak


def _with_last_lines(problem: str, log: str) -> str:
    """And what the operator said last of the job that it begins with."""
    about = f"{NAMESPACE}/{problem.partition(' ')[0]}: "
    said = [line for line in log.splitlines() if about in line][-3:]
    return " | ".join([problem, *said])


async def _finish(session: aiohttp.ClientSession, soak: Soak) -> None:
    """Every job that is left completes, and no pod is alive then."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        jobs = await _list(session, _PATH)
        open_jobs = [job for job in jobs if job.get("status", {}).get("phase") != "Complete"]
        pods = await _list(session, _PODS)
        alive = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        if not open_jobs and not alive:
            return
        await asyncio.sleep(1)
    soak.problems += [f"{job['metadata']['name']} did not complete: {job.get('status')}" for job in open_jobs]
    soak.problems += [f"pod {name} is alive" for name in alive]


async def _leave_nothing(session: aiohttp.ClientSession, operator: OperatorProcess, soak: Soak) -> None:
    """All jobs are deleted: the operator knows of none any more."""
    async with session.delete(_PATH) as answer:
        assert answer.status == 200, await answer.text()
    deadline = time.monotonic() + FORGET_SECONDS
    while True:
        metrics = await asyncio.to_thread(operator.metrics)
        soak.left = {name: count for name, count in metrics.items() if name.startswith(KNOWN)}
        if soak.left and not any(soak.left.values()):
            return
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    soak.problems += [f"{name} is {count:.0f} without any job" for name, count in soak.left.items() if count]
    if not soak.left:
        soak.problems.append("the operator shows no metrics")


async def _once_started(operator: OperatorProcess) -> dict[str, float]:
    """Metrics of the operator when it has opened its watches: nothing has changed for a while."""
    deadline, seen = time.monotonic() + IDLE_SECONDS, [0.0]
    while time.monotonic() < deadline:
        metrics = await asyncio.to_thread(operator.metrics)
        seen.append(metrics.get(MEASURES["tasks"], 0.0))
        if seen[-1] and max(seen[-5:]) == min(seen[-5:]):
            return metrics
        await asyncio.sleep(1)
    raise AssertionError(f"the operator does not come to rest: {seen} tasks")


async def _come_to_rest(operator: OperatorProcess, before: dict[str, float], soak: Soak) -> None:
    """Files and tasks are as many as before the first job, but for some: a job or a watch that left one would show."""
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        after = await asyncio.to_thread(operator.metrics)
        soak.idle = {each: (before[MEASURES[each]], after.get(MEASURES[each], 0.0)) for each in MEASURES}
        grown = [each for each in ("files", "tasks") if soak.idle[each][1] > soak.idle[each][0] + SLACK]
        if not grown or time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    soak.problems += ["{} at rest: {:.0f} before, {:.0f} after".format(each, *soak.idle[each]) for each in grown]


async def _list(session: aiohttp.ClientSession, path: str, **query: str) -> list[Json]:
    async with session.get(path, params=query) as answer:
        items: list[Json] = (await answer.json())["items"]
    return items


def _is_going(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _leaks(soak: Soak) -> Sequence[str]:
    """Memory that grew by more than chance.

    It fluctuates by some per cent, so that it is judged by what a leak would add: half of the jobs come and go between
    the middles of the second and the last quarter.
    """
    early, _, late = soak.quarters("resident")
    if late <= early + soak.jobs / 2 * JOB_BYTES:
        return []
    return [f"resident memory grew from {early:.0f} to {late:.0f} bytes"]
