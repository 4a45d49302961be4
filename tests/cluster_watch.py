"""When things happened in a namespace, by the clock of this machine: three watches of one client.

Jobs and pods are asked for without what the watcher does not need, for it shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import aiohttp

from e2e.kubectl import Json, condition, is_true
from finetune_operator import constants

_METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
GANG = 2
"""Pods of a complete gang."""


class ClusterWatch:
    """All times are monotonic; keys are names of FineTuneJobs unless said otherwise."""

    def __init__(self, session: aiohttp.ClientSession, namespace: str) -> None:
        self._session = session
        self._namespace = namespace
        self.created: dict[str, float] = {}
        """When the client asked for it; whoever creates notes it."""
        self.first_child: dict[str, float] = {}
        self.gang_complete: dict[str, float] = {}
        """When all pods of the first attempt were there."""
        self.has_status: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.running_now: set[str] = set()
        self.complete: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        """With the message."""
        self.preempted: dict[str, float] = {}
        self.generations: dict[tuple[str, int], float] = {}
        """Name and generation -> when the status had seen it."""
        self.ended_jobs: dict[str, float] = {}
        """Name of a plain Job -> when it was Complete."""
        self._attempts: dict[tuple[str, str], set[str]] = defaultdict(set)
        """uid of a FineTuneJob and name of an attempt's Job -> every uid that it was seen with."""
        self._pods: dict[str, dict[str, str]] = defaultdict(dict)
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        namespace = f"namespaces/{self._namespace}"
        watches = (
            (f"/apis/{constants.API_VERSION}/{namespace}/{constants.JOB_PLURAL}", {}, {}, self._on_fine_tune_job),
            (f"/apis/batch/v1/{namespace}/jobs", {}, {"labelSelector": f"!{constants.JOB_LABEL}"}, self._on_plain_job),
            (f"/apis/batch/v1/{namespace}/jobs", _METADATA_ONLY, {"labelSelector": constants.JOB_LABEL}, self._on_job),
            (f"/api/v1/{namespace}/pods", _METADATA_ONLY, {"labelSelector": constants.JOB_LABEL}, self._on_pod),
        )
        self._tasks = [asyncio.create_task(self._follow(*watch)) for watch in watches]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def delays(self, times: Mapping[str, float]) -> list[float]:
        """Seconds since each job was created."""
        return [at - self.created[name] for name, at in times.items()]

    def find_pod(self, job: str, index: int) -> str | None:
        """The newest training pod with this index, if there ever was one."""
        return self._pods[job].get(str(index))

    def started_twice(self) -> list[str]:
        """Attempts that two Jobs were created for."""
        return [name for (_, name), uids in self._attempts.items() if len(uids) > 1]

    async def until(self, holds: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Wait for an event that makes this true; raises ``TimeoutError`` that says what did not happen."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    if self.failed:
                        raise AssertionError(f"{self._namespace}: failed: {self.failed}")
                    self._changed.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 1)
        except TimeoutError:
            raise TimeoutError(f"{self._namespace}: {what}: not after {seconds:.0f} s") from None
        self.fail_if_blind()

    def fail_if_blind(self) -> None:
        """Raise what ended one of the watches, if anything did: what it has not seen proves nothing."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _follow(
        self, path: str, headers: dict[str, str], query: dict[str, str], note: Callable[[Json, float], None]
    ) -> None:
        """From the beginning; the server ends a watch after a while, then from the beginning again."""
        parameters = {**query, "watch": "true", "timeoutSeconds": "3600"}
        while True:
            async with self._session.get(
                path, params=parameters, headers=headers, timeout=aiohttp.ClientTimeout()
            ) as stream:
                if stream.status == 429:  # a custom resource that is just being set up
                    await asyncio.sleep(0.2)
                    continue
                stream.raise_for_status()
                async for line in stream.content:
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED"):
                        note(event["object"], time.monotonic())
                        self._changed.set()

    def _on_fine_tune_job(self, job: Json, now: float) -> None:
        name, status = job["metadata"]["name"], job.get("status")
        if not status or status["observedGeneration"] < 0:  # as the API server fills it in
            return
        self.has_status.setdefault(name, now)
        self.generations.setdefault((name, status.get("observedGeneration", 0)), now)
        if status.get("phase") == "Running":
            self.running.setdefault(name, now)
            self.running_now.add(name)
        else:
            self.running_now.discard(name)
        if is_true(job, "Complete"):
            self.complete.setdefault(name, now)
        elif is_true(job, "Failed"):
            self.failed[name] = condition(job, "Failed")["message"]
        if "Preempted" in status.get("totals", {}).get("byCause", {}):
            self.preempted.setdefault(name, now)

    def _on_plain_job(self, job: Json, now: float) -> None:
        if is_true(job, "Complete"):
            self.ended_jobs.setdefault(job["metadata"]["name"], now)

    def _on_job(self, job: Json, now: float) -> None:
        labels = job["metadata"]["labels"]
        self.first_child.setdefault(labels[constants.JOB_LABEL], now)
        if labels[constants.STAGE_LABEL] == constants.STAGE_TRAIN:
            attempt = labels[constants.JOB_UID_LABEL], job["metadata"]["name"]
            self._attempts[attempt].add(job["metadata"]["uid"])

    def _on_pod(self, pod: Json, now: float) -> None:
        labels = pod["metadata"]["labels"]
        if labels[constants.STAGE_LABEL] != constants.STAGE_TRAIN or "deletionTimestamp" in pod["metadata"]:
            return
        pods = self._pods[labels[constants.JOB_LABEL]]
        pods[pod["metadata"]["annotations"][constants.COMPLETION_INDEX_ANNOTATION]] = pod["metadata"]["name"]
        if len(pods) == GANG:
            self.gang_complete.setdefault(labels[constants.JOB_LABEL], now)
