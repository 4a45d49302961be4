"""Nodes whose kubelets are simulated: pods that the real scheduler binds to them run, train, save and go.

One watch on an event loop in a thread plays all kubelets. A gang behaves as a real rendezvous does: it trains only
while all of its pods run, and a part of it waits for the rest. What the pods say is what the trainer would say.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

import aiohttp

from apiserver import MERGE_PATCH, TOKEN, ApiServer
from e2e.kubectl import Json, Kubectl, WaitError
from finetune_operator import constants
from pod_status import PREPARED, TRAINED, ended_status, running_status

SAVED_STEPS = 7
"""By so many steps each gang that was complete gets further before it is asked to go."""

WAIT_SECONDS = 20.0

_ORDER = ("Pending", "Running", "Succeeded", "Failed")
"""Of a pod's phases: none of them is written after a later one."""

_JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
_RECONNECT_SECONDS = 0.2


def add_nodes(
    kubectl: Kubectl, names: Iterable[str], *, gpus: int = 1, kubelet_port: int | None = None, **labels: str
) -> None:
    """Ready nodes with so many GPUs each, and room for everything else; their kubelet may answer on loopback."""
    capacity = {"cpu": "1k", "memory": "4Ti", "ephemeral-storage": "1Ti", "pods": "1k", "nvidia.com/gpu": str(gpus)}
    kubelet: Json = {}
    if kubelet_port is not None:
        kubelet = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        }
    nodes = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
            "status": {
                "capacity": capacity,
                "allocatable": capacity,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                **kubelet,
            },
        }
        for name in names
    ]
    kubectl.create(*nodes)
    # The API server taints new nodes; the controller that would forgive them does not run here.
    for node in nodes:
        kubectl.patch("node", node["metadata"]["name"], {"spec": {"taints": None}})


class FakeKubelets:
    """Runs the pods of FineTuneJobs on all nodes, from ``with`` to its end."""

    def __init__(self, server: ApiServer, *, train_seconds: float = 0.3) -> None:
        self._url = f"https://127.0.0.1:{server.port}"
        self._train_seconds = train_seconds
        self._held: set[str] = set()
        self._held_checks: set[str] = set()
        self._endings: dict[tuple[str, int], tuple[int, Json]] = {}
        """Name of a FineTuneJob and number of an attempt (0: prepare) -> how its pod ends."""
        self._pods: dict[str, Json] = {}
        self._started: dict[str, Json] = {}
        """uid of a pod -> the labels and owners that it was made with."""
        self._overlaps: dict[str, set[str]] = defaultdict(set)
        """Name of a FineTuneJob -> what was seen of two gangs that ran at the same time."""
        self._sizes: dict[str, int] = {}
        """uid of a Job -> how many pods its gang has."""
        self._steps: dict[str, int] = {}
        """uid of a FineTuneJob -> the newest checkpoint of its run."""
        self._written: dict[str, str] = {}
        """uid of a pod -> the phase that was written last; what the watch shows may be older."""
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._calls: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubelets", daemon=True)

    def __enter__(self) -> FakeKubelets:
        self._thread.start()
        self._loop.call_soon_threadsafe(self._call, self._watch())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        if error is None and self._errors:
            raise self._errors[0]

    def hold(self, *jobs: str) -> None:
        """Gangs of these FineTuneJobs train until :meth:`release`."""
        self._held.update(jobs)

    def hold_checks(self, *jobs: str) -> None:
        """Prepare pods of these FineTuneJobs work until :meth:`release`."""
        self._held_checks.update(jobs)

    def release(self, *jobs: str) -> None:
        """They may end now."""
        self._held.difference_update(jobs)
        self._held_checks.difference_update(jobs)
        self._loop.call_soon_threadsafe(self._look_at_all)

    def ends(self, job: str, attempt: int, exit_code: int, words: Json) -> None:
        """Pod 1 of this attempt ends like this once its gang is complete, and its peers as victims; 0 is prepare."""
        self._endings[job, attempt] = (exit_code, words)

    def overlaps(self, job: str) -> list[str]:
        """Which gangs of a FineTuneJob ran at the same time, in sentences."""
        return sorted(self._overlaps[job])

    def wait_for_gang(
        self, kubectl: Kubectl, job: str, count: int, *, phase: str = "Running", seconds: float = WAIT_SECONDS
    ) -> list[Json]:
        """Wait until so many pods of a Job have nodes and are in this phase; they come by index.

        Raises:
            WaitError: not within ``seconds``; shows what there is.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            bound = [
                pod
                for pod in list(self._pods.values())
                if pod["metadata"]["namespace"] == kubectl.namespace and _labels(pod)[_JOB_NAME_LABEL] == job
            ]
            if [pod["status"]["phase"] for pod in bound] == [phase] * count:
                return sorted(bound, key=lambda pod: str(pod["metadata"]["name"]))
            time.sleep(0.05)
        raise WaitError(f"{job}: {count} pods {phase}: {[pod['status'] for pod in bound]}")

    # --- the watch --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async with aiohttp.ClientSession(
            self._url,
            headers={"Authorization": f"Bearer {TOKEN}"},
            connector=aiohttp.TCPConnector(ssl=False, limit=0),
            read_bufsize=2**20,
        ) as self._session:
            while True:
                with suppress(aiohttp.ClientError):
                    await self._follow()
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _follow(self) -> None:
        """List, then watch until the API server closes the stream."""
        # By the Job controller's label: a kubelet goes on with a pod from which somebody removed ours.
        query = {"labelSelector": _JOB_NAME_LABEL}
        async with self._session.get("/api/v1/pods", params=query) as answer:
            listed = await answer.json()
        pods = [self._as_started(pod) for pod in listed["items"]]
        self._pods = {pod["metadata"]["uid"]: pod for pod in pods if _is_ours(pod) and _is_bound(pod)}
        self._look_at_all()
        query |= {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
        async with self._session.get("/api/v1/pods", params=query, timeout=aiohttp.ClientTimeout()) as stream:
            async for line in stream.content:
                self._note(json.loads(line))

    def _note(self, event: Json) -> None:
        pod = event["object"]
        if event["type"] == "ERROR":
            raise aiohttp.ClientError(pod.get("message", "the watch ended"))
        pod = self._as_started(pod)
        if not _is_ours(pod) or not _is_bound(pod):
            return
        if event["type"] == "DELETED":
            self._pods.pop(pod["metadata"]["uid"], None)
        else:
            self._pods[pod["metadata"]["uid"]] = pod
            self._note_overlap(pod)
            self._look_at(pod)

    def _as_started(self, pod: Json) -> Json:
        """What somebody does to the labels and owners of a pod does not change what its container is told."""
        meta = pod["metadata"]
        started = self._started.setdefault(
            meta["uid"], {key: meta[key] for key in ("labels", "ownerReferences") if key in meta}
        )
        return {**pod, "metadata": {**meta, **started}}

    def _note_overlap(self, pod: Json) -> None:
        """One watch shows everything in the order in which it happened, so two that run in it ran together."""
        mine = _labels(pod)
        if pod["status"]["phase"] != "Running" or mine[constants.STAGE_LABEL] != constants.STAGE_TRAIN:
            return
        for other in self._pods.values():
            theirs = _labels(other)
            if (
                other["status"]["phase"] == "Running"
                and theirs[constants.STAGE_LABEL] == constants.STAGE_TRAIN
                and theirs[constants.JOB_UID_LABEL] == mine[constants.JOB_UID_LABEL]
                and _controller(other) != _controller(pod)
            ):
                names = sorted((mine[_JOB_NAME_LABEL], theirs[_JOB_NAME_LABEL]))
                self._overlaps[mine[constants.JOB_LABEL]].add(f"{names[0]} and {names[1]} ran at the same time")

    # --- kubelets ---------------------------------------------------------------------------------------------

    def _look_at_all(self) -> None:
        for pod in list(self._pods.values()):
            self._look_at(pod)

    def _look_at(self, pod: Json) -> None:
        """Do for one pod what its state asks for; its next event asks for the next thing."""
        phase = pod["status"]["phase"]
        if "deletionTimestamp" in pod["metadata"]:
            self._call(self._save_and_end(pod) if phase == "Running" else self._remove(pod))
        elif phase == "Pending":
            self._call(self._write(pod, running_status()))
        elif phase == "Running" and _labels(pod)[constants.STAGE_LABEL] == constants.STAGE_PREPARE:
            job = _labels(pod)[constants.JOB_LABEL]
            if job not in self._held_checks:
                self._call(self._write(pod, ended_status(*self._endings.get((job, 0), (0, PREPARED)))))
        elif phase == "Running":
            self._call(self._train(_controller(pod)))

    async def _save_and_end(self, pod: Json) -> None:
        step = self._steps.get(_labels(pod)[constants.JOB_UID_LABEL], 0)
        words: Json = {"outcome": "Preempted", "exitCode": 75, "step": step}
        if step:
            words["checkpoint"] = {"step": step, "uri": "file:///mnt/finetune/storage/checkpoints/c"}
        await self._write(pod, ended_status(75, words))

    async def _train(self, job: str) -> None:
        """The pod that completes its gang makes it train; the others found it incomplete."""
        size = await self._size_of(job)
        gang = self._running(job)
        if len(gang) < size:
            return
        owner = _labels(gang[0])
        self._steps[owner[constants.JOB_UID_LABEL]] = int(owner[constants.ATTEMPT_LABEL]) * SAVED_STEPS
        await asyncio.sleep(self._train_seconds)
        gang = self._running(job)
        ending = self._endings.get((owner[constants.JOB_LABEL], int(owner[constants.ATTEMPT_LABEL])))
        if ending is not None:
            peer = ended_status(76, {"outcome": "Failed", "exitCode": 76, "cause": "PeerLost", "rank": 1})
            own = ended_status(*ending)
            await asyncio.gather(*(self._write(pod, own if _index(pod) == "1" else peer) for pod in gang))
        elif len(gang) == size and owner[constants.JOB_LABEL] not in self._held:
            await asyncio.gather(*(self._write(pod, ended_status(0, TRAINED)) for pod in gang))

    def _running(self, job: str) -> list[Json]:
        return [
            pod
            for pod in self._pods.values()
            if _controller(pod) == job
            and pod["status"]["phase"] == "Running"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    async def _size_of(self, job: str) -> int:
        if job not in self._sizes:
            pod = next(pod for pod in self._pods.values() if _controller(pod) == job)
            name = _labels(pod)[_JOB_NAME_LABEL]
            path = f"/apis/batch/v1/namespaces/{pod['metadata']['namespace']}/jobs/{name}"
            async with self._session.get(path) as answer:
                found = await answer.json()
            if answer.status != 200:
                return len(self._pods) + 1  # its Job is gone: the gang is not going to be complete
            self._sizes[job] = found["spec"]["completions"]
        return self._sizes[job]

    async def _write(self, pod: Json, status: Json) -> None:
        uid, phase = pod["metadata"]["uid"], status["phase"]
        async with self._locks[uid]:
            if _ORDER.index(self._written.get(uid, "Pending")) >= _ORDER.index(phase):
                return
            body = {"metadata": {"uid": uid}, "status": status}
            async with self._session.patch(f"{_path(pod)}/status", json=body, headers=MERGE_PATCH) as answer:
                _check(answer)
            self._written[uid] = phase

    async def _remove(self, pod: Json) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        async with self._session.delete(_path(pod), json=body) as answer:
            _check(answer)

    def _call(self, call: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # While the API server is away nobody can say anything; the list after that shows what is to be said again.
        if not isinstance(error, aiohttp.ClientConnectionError):
            self._errors.append(error)

    async def _finish(self) -> None:
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


def _check(answer: aiohttp.ClientResponse) -> None:
    """A pod that is gone or replaced is none of ours any more."""
    if answer.status not in (404, 409):
        answer.raise_for_status()


def _is_ours(pod: Json) -> bool:
    return constants.JOB_LABEL in _labels(pod)


def _is_bound(pod: Json) -> bool:
    return bool(pod["spec"].get("nodeName"))


def _labels(pod: Json) -> dict[str, str]:
    labels: dict[str, str] = pod["metadata"]["labels"]
    return labels


def _index(pod: Json) -> str:
    index: str = pod["metadata"]["annotations"][constants.COMPLETION_INDEX_ANNOTATION]
    return index


def _controller(pod: Json) -> str:
    uid: str = pod["metadata"]["ownerReferences"][0]["uid"]
    return uid


def _path(pod: Json) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
