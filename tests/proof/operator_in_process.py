"""An operator inside the test's own process: its core, queue and client, with watches of three lines, that can die.

It dies before or after a chosen call that changes something, as a process does that is killed there: what it knew is
gone, and what it had asked for has happened or not. Starting a fresh one takes milliseconds, so that every such point
of a scenario can be tried. What kopf adds, and what a real process does, is tested with real processes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import aiohttp
from kubernetes.aio import client, config

from finetune_operator import constants
from finetune_operator.config import OperatorConfig
from finetune_operator.shell.controller import Controller
from finetune_operator.shell.kube import REQUEST_SECONDS, Kube
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.object_key import ObjectKey

When = Literal["before", "after"]
_RECONNECT_SECONDS = 0.05


class Crash(BaseException):
    """The operator dies here; nothing of it may catch this."""


@dataclass
class CrashPlan:
    """Where to die, and what was written on the way there."""

    at: int = 0
    """Number of the call, from 1 on; 0: never."""
    when: When = "before"
    writes: list[str] = field(default_factory=list)
    crashed: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, call: str) -> None:
        """A call that changes something is about to be made."""
        if self.crashed.is_set():
            raise Crash
        self.writes.append(call)
        self._die("before")

    def end(self) -> None:
        """It was made."""
        self._die("after")

    def _die(self, when: When) -> None:
        if self.at == len(self.writes) and self.when == when:
            self.crashed.set()
            raise Crash


class CrashingKube(Kube):
    """The operator's client, under a plan."""

    def __init__(self, api: client.ApiClient, metrics: Metrics, plan: CrashPlan) -> None:
        super().__init__(api, metrics)
        self._plan = plan

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Any = None,
        seconds: float = REQUEST_SECONDS,
    ) -> bytes:
        if method == "GET":
            return await super()._call(method, path, query, body=body, seconds=seconds)
        self._plan.begin(f"{method} {path.split('/namespaces/')[-1]}{' ' + _name(body) if method == 'POST' else ''}")
        answer = await super()._call(method, path, query, body=body, seconds=seconds)
        self._plan.end()
        return answer


class OperatorInProcess:
    """Looks after one FineTuneJob of one namespace."""

    def __init__(
        self, kubeconfig: Path, url: str, token: str, key: ObjectKey, plan: CrashPlan, clock: Callable[[], datetime]
    ) -> None:
        self._kubeconfig = kubeconfig
        self._url = url
        self._token = token
        self._key = key
        self._plan = plan
        self._clock = clock
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, watch and work."""
        configuration = client.Configuration()
        await config.load_kube_config(config_file=str(self._kubeconfig), client_configuration=configuration)
        metrics = Metrics()
        kube = CrashingKube(client.ApiClient(configuration), metrics, self._plan)
        settings = OperatorConfig(namespaces=(self._key.namespace,), workers=1, resync_seconds=2, progress_seconds=5)
        self.controller = Controller(kube, settings, metrics, self._clock)
        await self.controller.start()
        headers = {"Authorization": f"Bearer {self._token}"}
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        self._session = aiohttp.ClientSession(self._url, headers=headers, connector=connector, read_bufsize=2**20)
        namespace, label = self._key.namespace, f"{constants.JOB_LABEL}={self._key.name}"
        ours = f"/apis/{constants.API_VERSION}/namespaces/{namespace}/{constants.JOB_PLURAL}"
        self._watches = [
            asyncio.create_task(self._watch(ours, {"fieldSelector": f"metadata.name={self._key.name}"})),
            asyncio.create_task(self._watch(f"/apis/batch/v1/namespaces/{namespace}/jobs", {"labelSelector": label})),
            asyncio.create_task(self._watch(f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": label})),
        ]
        self.controller.dispatcher.wake(self._key)

    async def die(self) -> None:
        """Nothing of it is left, and nothing is tidied up in the cluster."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._session.close()
        with suppress(Crash):
            await self.controller.close()

    async def _watch(self, path: str, query: dict[str, str]) -> None:
        """From whatever is there now; again whenever the stream ends."""
        while True:
            with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                parameters = {**query, "watch": "true"}
                async with self._session.get(path, params=parameters, timeout=aiohttp.ClientTimeout()) as stream:
                    async for line in stream.content if stream.status == 200 else _nothing():
                        self._note(json.loads(line))
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _note(self, event: dict[str, Any]) -> None:
        raw = event["object"]
        if event["type"] == "ERROR":
            return
        if raw["kind"] == constants.JOB_KIND and event["type"] == "DELETED":
            self.controller.forget(self._key)
        else:
            self.controller.saw(self._key, raw["kind"], raw, event["type"])


async def _nothing() -> AsyncIterator[bytes]:
    """A watch that was refused shows nothing."""
    return
    yield b""


def utc_now() -> datetime:
    """The real clock."""
    return datetime.now(UTC)


def _name(body: Any) -> str:
    name: str = body["metadata"].get("name", "")
    return name
