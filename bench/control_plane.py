"""Hundreds of FineTuneJobs at once on a real control plane, beside the floor: as many plain Jobs and pods.

    make bench-control-plane       # or: python bench/control_plane.py [--sizes 1,50,200,200x8,1000] [--live 1000]

etcd, kube-apiserver, kube-controller-manager and kube-scheduler are real, nodes are kwok's, the operator is a process
as in its image. Each FineTuneJob is a prepare Job of one pod and then a gang of two; every pod runs for two seconds.
The floor is as many plain Jobs and pods, all created at once by a client without any operator: the mean of one before
and one after, because machines are noisy. A second floor has pods like those of the FineTuneJobs, which carry volumes,
variables and rules that plain ones do not. Everything shares the cores of one machine, so only ratios travel. Writes
``docs/control-plane.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "trainer_image"), str(ROOT / "tests")]

from api_profile import shares, take_profile  # noqa: E402
from control_plane_page import CHANGES_PER_SECOND, RUN_SECONDS, Burst, Live, page  # noqa: E402
from plain_jobs import numbered, plain_job, without_owner  # noqa: E402

from apiserver import MERGE_PATCH, OPERATOR, ApiServer  # noqa: E402
from cluster_watch import ClusterWatch  # noqa: E402
from cpu_time import cpu_seconds_by_program  # noqa: E402
from e2e.kubectl import Json, Kubectl  # noqa: E402
from eviction import evict  # noqa: E402
from finetune_operator import constants  # noqa: E402
from finetune_operator.shell.metrics import CHECKPOINT_AGE_SECONDS, WATCH_EVENTS  # noqa: E402
from kwok import LIVE, POOL, a_simulated_job, add_namespace, kwok_cluster  # noqa: E402
from operator_process import OperatorProcess  # noqa: E402

PAGE = ROOT / "docs" / "control-plane.md"
CREATORS = 16
"""Requests of the client at the same time."""
AT_REST = 0.3
"""CPU seconds a second of all programs that have nothing to do."""
LARGEST_SECOND_FLOOR = 200
"""Jobs; with more it would only take longer."""
PROFILED = 200
"""Jobs at once, for one pool: what has a bar."""
JOBS = f"/apis/{constants.API_VERSION}/namespaces/{{}}/{constants.JOB_PLURAL}"
PASSES = "finetune_operator_reconcile_seconds_count"
READS = 'finetune_operator_api_request_seconds_count{verb="get"}'
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bench:
    """A control plane with nodes, an operator, and a client."""

    server: ApiServer
    kubectl: Kubectl
    operator: OperatorProcess
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Json) -> None:
        """Create something."""
        async with self.session.post(path, json=body) as answer:
            if answer.status != 201:
                raise RuntimeError(f"POST {path}: {answer.status} {await answer.text()}")

    async def remove(self, path: str) -> None:
        """Delete everything of a collection and wait until it is gone; all at once would take the server minutes."""
        names = [each["metadata"]["name"] for each in await self._items(path)]
        await in_parallel(iter([functools.partial(self._delete, f"{path}/{name}") for name in names]))
        while True:
            if not await self._items(path, limit="1"):
                return
            await asyncio.sleep(0.5)

    async def jobs_like_ours(self, namespace: str) -> list[Json]:
        """One Job of each stage, as the operator made them, with nothing that makes them its own."""
        jobs = await self._items(f"/apis/batch/v1/namespaces/{namespace}/jobs")
        by_stage = {job["metadata"]["labels"][constants.STAGE_LABEL]: job for job in jobs}
        return [without_owner(job) for job in by_stage.values()]

    async def _items(self, path: str, **query: str) -> list[Json]:
        async with self.session.get(path, params=query) as answer:
            items: list[Json] = (await answer.json())["items"]
        return items

    async def _delete(self, path: str) -> None:
        async with self.session.delete(path, json={"propagationPolicy": "Foreground"}) as answer:
            answer.raise_for_status()


async def in_parallel(calls: Iterator[Callable[[], Awaitable[None]]]) -> None:
    """Run them, some at the same time."""

    async def create() -> None:
        for call in calls:
            await call()

    await asyncio.gather(*(create() for _ in range(CREATORS)))


# --- bursts -------------------------------------------------------------------------------------------------------


async def burst(bench: Bench, size: int, pools: int = 1) -> Burst:
    """The floor, then the jobs."""
    result = Burst(size, pools)
    plain = [plain_job("p", 1), plain_job("t", 2)]
    before = await _floor(bench, size, plain)
    namespace = add_namespace(bench.kubectl, f"burst-{next(_numbers)}")
    names = [f"job-{number}" for number in range(size)]
    await _calm()
    cpu, metrics = cpu_seconds_by_program(), await asyncio.to_thread(bench.operator.metrics)
    async with ClusterWatch(bench.session, namespace) as watch:
        begun = time.monotonic()
        profile = asyncio.create_task(take_profile(bench.session)) if (size, pools) == (PROFILED, 1) else None
        turns = itertools.cycle([POOL] if pools == 1 else [f"{POOL}-{number}" for number in range(pools)])
        await in_parallel(iter([_creation(bench, watch, namespace, name, next(turns)) for name in names]))
        await watch.until(lambda: len(watch.complete) == size, seconds=60 + size, what="all complete")
        result.total = max(watch.complete.values()) - begun
    result.cpu = cpu_seconds_by_program() - cpu
    after = await asyncio.to_thread(bench.operator.metrics)
    result.passes, result.reads = (after[name] - metrics.get(name, 0.0) for name in (PASSES, READS))
    result.first_child = watch.delays(watch.first_child)
    result.pods = watch.delays(watch.gang_complete)
    result.complete = watch.delays(watch.complete)
    result.peak_mebibytes = bench.operator.peak_mebibytes()
    if profile is not None:
        result.api_profile = await asyncio.to_thread(shares, await profile)
    writes = await asyncio.to_thread(bench.server.audit_log.writes, OPERATOR, namespace)
    result.writes = Counter(f"{write.verb} {write.resource}" for write in writes)
    ours = await bench.jobs_like_ours(namespace)
    await bench.remove(JOBS.format(namespace))
    if size <= LARGEST_SECOND_FLOOR:
        result.like_ours, result.like_ours_cpu = await _floor(bench, size, ours)
    after_all, result.floor_cpu = await _floor(bench, size, plain)
    result.floors = [before[0], after_all]
    return result


def _creation(
    bench: Bench, watch: ClusterWatch, namespace: str, name: str, pool: str = POOL
) -> Callable[[], Awaitable[None]]:
    async def create() -> None:
        watch.created[name] = time.monotonic()
        await bench.post(JOBS.format(namespace), a_simulated_job(name, pool))

    return create


async def _calm() -> None:
    """Until everybody has done with what was before: garbage is collected long after it has gone from sight."""
    async with asyncio.timeout(120):
        while True:
            before = cpu_seconds_by_program().total()
            await asyncio.sleep(1)
            if cpu_seconds_by_program().total() - before < AT_REST:
                return


async def _floor(bench: Bench, size: int, kinds: Sequence[Json]) -> tuple[float, Counter[str]]:
    """As many Jobs of each of these that nobody but their own controller looks after; seconds, and CPU by program."""
    namespace = add_namespace(bench.kubectl, f"floor-{next(_numbers)}")
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    manifests = [numbered(job, number) for number in range(size) for job in kinds]
    await _calm()
    async with ClusterWatch(bench.session, namespace) as watch:
        begun, cpu = time.monotonic(), cpu_seconds_by_program()
        await in_parallel(iter([functools.partial(bench.post, path, manifest) for manifest in manifests]))
        total = len(manifests)
        await watch.until(lambda: len(watch.ended_jobs) == total, seconds=60 + size, what="all plain Jobs")
        result = max(watch.ended_jobs.values()) - begun, cpu_seconds_by_program() - cpu
    await bench.remove(path)
    return result


# --- many live jobs -----------------------------------------------------------------------------------------------


async def live(bench: Bench, size: int, seconds: float) -> Live:
    """Created at once; edited and evicted while they train; then the operator starts anew."""
    result = Live(size)
    namespace = add_namespace(bench.kubectl, LIVE)
    names = [f"job-{number}" for number in range(size)]
    async with ClusterWatch(bench.session, namespace) as watch:
        begun = time.monotonic()
        await in_parallel(iter([_creation(bench, watch, namespace, name) for name in names]))
        await watch.until(lambda: len(watch.has_status) == size, seconds=300, what="all have a status")
        result.all_have_status = max(watch.has_status.values()) - begun
        await watch.until(lambda: len(watch.running) == size, seconds=60 + size, what="all run")
        result.all_run = max(watch.running.values()) - begun
        await asyncio.sleep(10)
        cpu, begun = bench.operator.cpu_seconds(), time.monotonic()
        result.edits = await _edits(bench, watch, namespace, itertools.cycle(names), seconds)
        result.cpu_share = (bench.operator.cpu_seconds() - cpu) / (time.monotonic() - begun)
        result.evictions = await _evictions(bench, watch, namespace, names[: int(seconds)])
        await watch.until(lambda: len(watch.running_now) == size, seconds=120, what="all run again")
        result.peak_mebibytes = bench.operator.peak_mebibytes()
        result.start_up = await _start_again(bench, size)
        await _until_all_is_listed(bench, size)
        result.peak_after_start = bench.operator.peak_mebibytes()
    await bench.remove(JOBS.format(namespace))
    return result


async def _edits(
    bench: Bench, watch: ClusterWatch, namespace: str, names: Iterator[str], seconds: float
) -> list[float]:
    """A field that may change while a job trains; until the status has seen it."""
    asked: dict[tuple[str, int], float] = {}
    for number in range(int(seconds * CHANGES_PER_SECOND)):
        name = next(names)
        body = {"spec": {"ttlSecondsAfterFinished": 1000 + number}}
        path = f"{JOBS.format(namespace)}/{name}"
        async with bench.session.patch(path, json=body, headers=MERGE_PATCH) as answer:
            generation = (await answer.json())["metadata"]["generation"]
        asked[name, generation] = time.monotonic()
        await asyncio.sleep(1 / CHANGES_PER_SECOND)
    await watch.until(lambda: asked.keys() <= watch.generations.keys(), seconds=60, what="all edits seen")
    return [max(0.0, watch.generations[key] - at) for key, at in asked.items()]


async def _evictions(bench: Bench, watch: ClusterWatch, namespace: str, names: Sequence[str]) -> list[float]:
    """A pod of each gang has to go; until the status says that the attempt was preempted."""
    asked: dict[str, float] = {}
    for name in names:
        pod = watch.find_pod(name, 1)
        assert pod is not None, f"{name} has no pod 1"
        await evict(bench.session, namespace, pod)
        asked[name] = time.monotonic()
        await asyncio.sleep(1 / CHANGES_PER_SECOND)
    await watch.until(lambda: asked.keys() <= watch.preempted.keys(), seconds=120, what="all evictions recorded")
    return [max(0.0, watch.preempted[name] - at) for name, at in asked.items()]


async def _start_again(bench: Bench, size: int) -> float:
    """Seconds from the start of the process until it has looked at every job."""
    await asyncio.to_thread(bench.operator.stop)
    begun = time.monotonic()
    bench.operator.start()
    while True:
        metrics = await asyncio.to_thread(bench.operator.metrics)
        # Each running job has a series of its own from its first pass on.
        if sum(name.startswith(f"{CHECKPOINT_AGE_SECONDS[0]}{{") for name in metrics) >= size:
            return time.monotonic() - begun
        if time.monotonic() - begun > 300:
            raise RuntimeError(f"the operator has not looked at {size} jobs after 300 s: {metrics}")
        await asyncio.sleep(0.1)


async def _until_all_is_listed(bench: Bench, size: int) -> None:
    """The watches have shown the operator each job, its two Jobs and its three pods."""
    wanted = {constants.JOB_KIND: size, "Job": 2 * size, "Pod": 3 * size}
    async with asyncio.timeout(120):
        while True:
            metrics = await asyncio.to_thread(bench.operator.metrics)
            shown = {kind: metrics.get(f'{WATCH_EVENTS[0]}{{kind="{kind}"}}', 0.0) for kind in wanted}
            if all(shown[kind] >= count for kind, count in wanted.items()):
                return
            await asyncio.sleep(0.5)


# --- the page -----------------------------------------------------------------------------------------------------


async def measure(bench: Bench, sizes: Sequence[tuple[int, int]], lives: Sequence[int], seconds: float) -> str:
    """Everything, one after the other."""
    await burst(bench, 1)  # warms up caches and connections
    bursts = []
    for size, pools in sizes:
        bursts.append(await burst(bench, size, pools))
        print(
            f"{size} jobs, {pools} pools: floor {bursts[-1].floor:.1f} s, all complete {bursts[-1].total:.1f} s",
            file=sys.stderr,
        )
    return page(bursts, [await live(bench, size, seconds) for size in lives])


async def run(sizes: Sequence[tuple[int, int]], lives: Sequence[int], seconds: float) -> str:
    """On a control plane of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        kwok_cluster(Path(folder), run_seconds=RUN_SECONDS) as (server, kubectl),
    ):
        operator = OperatorProcess(server.operator_kubeconfig, Path(folder) / "operator.log")
        operator.start()
        try:
            async with server.session() as session:
                return await measure(Bench(server, kubectl, operator, session), sizes, lives, seconds)
        finally:
            operator.stop()


def numbers(text: str) -> list[int]:
    """Comma-separated; none when empty."""
    return [int(word) for word in text.split(",") if word]


def bursts_of(text: str) -> list[tuple[int, int]]:
    """``50,200x8``: jobs, and pools if there are several."""
    parts = (word.partition("x") for word in text.split(",") if word)
    return [(int(size), int(pools or 1)) for size, _, pools in parts]


def main() -> int:
    """Measure, print and write the page when everything was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = "1,50,200,200x8,1000"
    parser.add_argument(
        "--sizes", type=bursts_of, default=sizes, help=f"jobs at once, and for how many pools ({sizes})"
    )
    parser.add_argument("--live", type=numbers, default=[1000], help="jobs that train at the same time (1000)")
    parser.add_argument("--seconds", type=float, default=60, help="for how long edits come (60)")
    parser.add_argument("--print", action="store_true", help="leave docs/control-plane.md as it is")
    options: Any = parser.parse_args()
    text = asyncio.run(run(options.sizes, options.live, options.seconds))
    print(text)
    if not options.print:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
