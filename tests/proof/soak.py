"""Ten minutes of everything at once: a hundred jobs that come and go, random faults, and nothing may be left behind.

The operator is a process behind the faulty proxy, nodes are kwok's. Every job of each of a hundred *slots* is let run,
evicted, suspended, edited, restarted or deleted, and followed by the next one, sometimes of the same name. What the
process holds (memory, open files, tasks of its event loop) is read from its own metrics.
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
from cluster_watch import ClusterWatch
from e2e.kubectl import Json
from eviction import evict
from faulty_proxy import faulty_proxy
from finetune_operator import constants
from finetune_operator.shell.kube import cancel_and_wait
from kwok import a_simulated_job, add_namespace, kwok_cluster
from operator_process import OperatorProcess
from proof.fault_plan import FaultPlan, kinds_of
from quantiles import quantile

SLOTS = 100
RUN_SECONDS = 15.0
"""Of each pod."""
FAULT_SHARE = 0.01
"""Of the operator's requests and watches."""
SAMPLE_SECONDS = 5.0
END_SECONDS = 240.0
"""After the last fault, for all jobs that are left to complete: some are backing off."""
FLAT = 1.05
"""How much more the last quarter may hold than the second."""
NAMESPACE = "soak"
MEASURES = {
    "resident": "process_resident_memory_bytes",
    "files": "process_open_fds",
    "tasks": "finetune_operator_tasks",
}
_PATH = f"/apis/{constants.API_VERSION}/namespaces/{NAMESPACE}/{constants.JOB_PLURAL}"


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
    problems: list[str] = field(default_factory=list)

    def growth(self, measure: str) -> tuple[float, float]:
        """Median of the second quarter, when everything is warm, and of the last one."""
        values = self.samples[measure]
        quarter = len(values) // 4
        return quantile(values[quarter : 2 * quarter], 0.5), quantile(values[-quarter:], 0.5)


class Slot:
    """One job after the other."""

    def __init__(self, session: aiohttp.ClientSession, watch: ClusterWatch, soak: Soak, number: int) -> None:
        self._session, self._watch, self._soak, self._number = session, watch, soak, number
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
            self._soak.done[act.__name__.strip("_")] += 1
            await act()
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

    async def _leave(self) -> None:
        """Alone."""

    async def _evict(self) -> None:
        pod = self._watch.find_pod(self.name, 1)
        if pod is not None:
            await evict(self._session, NAMESPACE, pod)

    async def _suspend(self) -> None:
        await self._patch(suspend=True)
        await asyncio.sleep(self._chance.uniform(0, RUN_SECONDS))
        await self._patch(suspend=False)

    async def _edit(self) -> None:
        await self._patch(training={"learningRate": self._chance.uniform(1e-5, 1e-3)})

    async def _restart(self) -> None:
        await self._patch(runId=str(self._chance.randrange(10**6)))

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
        operator = OperatorProcess(kubeconfig, log, {"PROGRESS_SECONDS": "10"})
        operator.start()
        proxy.inject_by_request(faults.choose)
        try:
            async with server.session() as session, ClusterWatch(session, NAMESPACE) as watch:
                sampler = asyncio.create_task(_sample(operator, soak))
                slots = [Slot(session, watch, soak, number) for number in range(SLOTS)]
                deadline = time.monotonic() + seconds
                await asyncio.gather(*(slot.run(deadline) for slot in slots))
                await cancel_and_wait(sampler)
                proxy.inject_by_request(None)
                await _finish(session, soak)
            soak.problems += [f"{job} was started twice" for job in watch.started_twice()]
        finally:
            operator.stop()
        if "Traceback" in (text := log.read_text()):
            soak.problems.append(f"Traceback in the log: {text[text.index('Traceback') :][:2000]}")
    soak.faults = kinds_of(faults.met)
    soak.problems += _leaks(soak)
    return soak


async def _finish(session: aiohttp.ClientSession, soak: Soak) -> None:
    """Every job that is left completes, and no pod is alive then."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        jobs = await _list(session, _PATH)
        open_jobs = [job for job in jobs if job.get("status", {}).get("phase") != "Complete"]
        pods = await _list(session, f"/api/v1/namespaces/{NAMESPACE}/pods")
        alive = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        if not open_jobs and not alive:
            return
        await asyncio.sleep(1)
    soak.problems += [f"{job['metadata']['name']} did not complete: {job.get('status')}" for job in open_jobs]
    soak.problems += [f"pod {name} is alive" for name in alive]


async def _list(session: aiohttp.ClientSession, path: str) -> list[Json]:
    async with session.get(path) as answer:
        items: list[Json] = (await answer.json())["items"]
    return items


def _leaks(soak: Soak) -> Sequence[str]:
    found = []
    for measure in MEASURES:
        early, late = soak.growth(measure)
        if late > early * FLAT + (3 if measure != "resident" else 0):
            found.append(f"{measure} grew from {early:.0f} to {late:.0f}")
    return found
