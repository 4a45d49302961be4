"""What a scenario does to its job and sees of it: a user, a drain and an observer who counts."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from apiserver import MERGE_PATCH
from e2e.kubectl import Json
from eviction import evict
from fake_kubelets import FakeKubelets
from finetune_operator import constants
from proof.operator_in_process import utc_now

_POLL_SECONDS = 0.03
_HASH = re.compile(r"-[0-9a-f]{8}$")


LANE_NODES = (1, 2)
"""Numbers of the nodes that a lane has for itself."""

_OF_ATTEMPTS = (
    *("number", "placement", "cause", "exitCode", "rank", "lostRank"),
    *("boundPods", "replanned", "traceback", "stepFrom", "stepTo", "message"),
)
_OF_TOTALS = ("attempts", "byCause", "failures", "withoutProgress", "checkpointStep", "replans")
"""Without what is made of times: seconds, goodput, cost."""

NEW_KINDS_SECONDS = 30.0
"""So often the garbage collector looks for new kinds; before that it does not know a CRD of a fresh cluster."""


class NotReached(AssertionError):
    """A state that a scenario waits for did not come."""


class Stage:
    """One job in one namespace."""

    def __init__(self, session: aiohttp.ClientSession, kubelets: FakeKubelets, namespace: str, name: str) -> None:
        self._session = session
        self.kubelets = kubelets
        self.namespace, self.name = namespace, name
        self.seconds = 25.0
        """How long a state may take to come."""
        self.skew = timedelta(0)
        """How far the operator's clock is ahead: time-outs of minutes pass at once."""
        self.wake: Callable[[], None] = lambda: None
        self.beside: Stage | None = None
        """Another job of the same story."""
        self._manifest: Json = {}
        self._path = f"/apis/{constants.API_VERSION}/namespaces/{namespace}/{constants.JOB_PLURAL}"

    def clock(self) -> datetime:
        """The operator's."""
        return utc_now() + self.skew

    def pass_time(self, seconds: float) -> None:
        """The operator's clock jumps, and it looks again."""
        self.skew += timedelta(seconds=seconds)
        self.wake()

    # --- the user ---------------------------------------------------------------------------------------------

    async def create(self, manifest: Json) -> None:
        """Apply the job."""
        self._manifest = manifest
        async with self._session.post(self._path, json=manifest) as answer:
            assert answer.status == 201, await answer.text()

    async def create_beside(self) -> Stage:
        """Apply another one like it."""
        self.beside = Stage(self._session, self.kubelets, self.namespace, f"{self.name}-b")
        await self.beside.create({**self._manifest, "metadata": {"name": self.beside.name}})
        return self.beside

    async def patch(self, **spec: Any) -> None:
        """Edit the spec."""
        path = f"{self._path}/{self.name}"
        async with self._session.patch(path, json={"spec": spec}, headers=MERGE_PATCH) as answer:
            assert answer.status == 200, await answer.text()

    async def delete(self) -> None:
        """``kubectl delete --wait=false``."""
        async with self._session.delete(f"{self._path}/{self.name}") as answer:
            assert answer.status in (200, 404), await answer.text()
        if self.beside is not None:
            await self.beside.delete()

    async def edit(self, child: Json, patch: Json) -> None:
        """``kubectl patch`` of a child, behind the operator's back."""
        async with self._session.patch(self._path_of(child), json=patch, headers=MERGE_PATCH) as answer:
            assert answer.status == 200, await answer.text()

    async def remove(self, child: Json, **options: Any) -> None:
        """``kubectl delete --wait=false`` of a child, with fields of ``DeleteOptions``."""
        body = {"propagationPolicy": "Background", **options}
        async with self._session.delete(self._path_of(child), json=body) as answer:
            assert answer.status in (200, 202), await answer.text()

    async def replace(self, child: Json, **fields: Any) -> None:
        """``kubectl replace --force``: it goes, and another one of its name comes."""
        await self.remove(child)
        meta = {key: child["metadata"][key] for key in ("name", "labels", "ownerReferences")}
        async with self._session.post(
            self._path_of(child).rpartition("/")[0], json={"metadata": meta, **fields}
        ) as answer:
            assert answer.status == 201, await answer.text()

    async def cordon(self, is_closed: bool) -> None:
        """Close the nodes of this lane to new pods, or open them."""
        for number in LANE_NODES:
            path, patch = f"/api/v1/nodes/{self.namespace}-{number}", {"spec": {"unschedulable": is_closed}}
            async with self._session.patch(path, json=patch, headers=MERGE_PATCH) as answer:
                assert answer.status == 200, await answer.text()

    async def evict(self, attempt: int, index: int) -> None:
        """A drain."""
        pods = await self.children("pods")
        name = next(
            pod["metadata"]["name"]
            for pod in pods
            if pod["metadata"]["labels"].get(constants.ATTEMPT_LABEL) == str(attempt)
            and pod["metadata"]["annotations"][constants.COMPLETION_INDEX_ANNOTATION] == str(index)
        )
        await evict(self._session, self.namespace, name)

    # --- the observer -----------------------------------------------------------------------------------------

    async def job(self) -> Json:
        """The FineTuneJob; empty when there is none."""
        async with self._session.get(f"{self._path}/{self.name}") as answer:
            found: Json = await answer.json()
        return found if answer.status == 200 else {}

    async def children(self, *collections: str) -> list[Json]:
        """Everything with the job's label."""
        return await self._list({"labelSelector": f"{constants.JOB_LABEL}={self.name}"}, collections)

    async def namesakes(self, *collections: str) -> list[Json]:
        """Everything that was named after the job, whatever became of its labels."""
        found = await self._list({}, collections)
        return [item for item in found if item["metadata"]["name"].startswith(f"{self.name}-")]

    async def _list(self, query: dict[str, str], collections: tuple[str, ...]) -> list[Json]:
        found: list[Json] = []
        for collection in collections or ("configmaps", "services", "pods", "jobs"):
            async with self._session.get(self._collection(collection), params=query) as answer:
                found += [{"kind": collection, **item} for item in (await answer.json())["items"]]
        return found

    def _collection(self, name: str) -> str:
        group = "/apis/batch/v1" if name == "jobs" else "/api/v1"
        return f"{group}/namespaces/{self.namespace}/{name}"

    def _path_of(self, child: Json) -> str:
        return f"{self._collection(child['kind'])}/{child['metadata']['name']}"

    async def until(self, holds: Callable[[Json], bool], what: str) -> Json:
        """The job once this holds of it.

        Raises:
            NotReached: it does not within ``self.seconds``; shows the job as it is.
        """
        deadline = time.monotonic() + self.seconds
        while True:
            job = await self.job()
            if holds(job):
                return job
            if time.monotonic() > deadline:
                raise NotReached(f"{self.name}: {what}: not after {self.seconds:.0f} s: {job.get('status')}")
            await asyncio.sleep(_POLL_SECONDS)

    async def until_running(self, attempt: int) -> Json:
        """All pods of this attempt run, and the status says so."""
        return await self.until(
            lambda job: status_of(job).get("phase") == "Running" and status_of(job)["totals"]["attempts"] == attempt,
            f"attempt {attempt} runs",
        )

    async def until_over(self) -> Json:
        """The run has ended."""
        return await self.until(lambda job: status_of(job).get("phase") in ("Complete", "Failed"), "an end")

    async def until_nothing_is_left(self) -> None:
        """The job and all of its children are gone."""
        await self.until(lambda job: not job, "the job is gone")
        deadline = time.monotonic() + self.seconds + NEW_KINDS_SECONDS
        while left := await self.children():
            if time.monotonic() > deadline:
                raise NotReached(f"{self.name}: left over: {[(x['kind'], x['metadata']['name']) for x in left]}")
            await asyncio.sleep(_POLL_SECONDS)

    # --- the end state ----------------------------------------------------------------------------------------

    async def normal_form(self) -> Json:
        """What must be the same however often the operator died: all of it but uids, times and versions.

        And nodes, which are the scheduler's choice; names and URIs that hold a uid; progress, which is read from logs
        that nobody writes here.
        """
        status = status_of(await self.job())
        alive = [pod for pod in await self.children("pods") if pod["status"]["phase"] in ("Pending", "Running")]
        names = [
            f"{item['kind']}/{_HASH.sub('', item['metadata']['name']).removeprefix(self.name)}"
            for item in await self.children()
        ]
        form = {
            "phase": status.get("phase"),
            "conditions": {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])},
            "attempts": [_pick(attempt, _OF_ATTEMPTS) for attempt in status.get("attempts", [])],
            "totals": _pick(status.get("totals", {}), _OF_TOTALS),
            "plan": status.get("plan"),
            "run": _pick(status.get("run", {}), ("id", "firstAttempt")),
            "checkpoint": status.get("checkpoint", {}).get("step"),
            "result": status.get("result", {}).get("digest"),
            "facts": status.get("facts"),
            "placement": _pick(status.get("placement", {}), ("candidate", "interruptions", "rounds")),
            "children": sorted(name for name in names if not name.startswith("pods/")),
            "alive": len(alive),
            "beside": await self.beside.normal_form() if self.beside is not None else {},
        }
        return self._anonymous(form)

    def _anonymous(self, form: Json) -> Json:
        """Its words name the lane and the job, and pods, whose names end at random."""
        words = re.sub(rf"{self.name}(-a\d+-\d+)-[a-z0-9]{{5}}", r"\1", json.dumps(form))
        anonymous: Json = json.loads(words.replace(self.namespace, "lane").replace(self.name, "job"))
        return anonymous


def _pick(values: Json, keys: tuple[str, ...]) -> Json:
    return {key: values.get(key) for key in keys}


def status_of(job: Json) -> Json:
    """Empty before the first pass."""
    status: Json = job.get("status", {})
    return status
