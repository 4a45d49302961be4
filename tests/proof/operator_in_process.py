"""An operator inside the test's own process: its core, queue and client, with watches like kopf's, that can die.

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
from finetune_operator.errors import KubernetesError
from finetune_operator.shell.controller import Controller
from finetune_operator.shell.kube import REQUEST_SECONDS, Kube, cancel_and_wait
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

    def begin(self, call: str) -> int:
        """A call that changes something is about to be made; returns its number, for several are made at once."""
        self._stay_dead()
        self.writes.append(call)
        number = len(self.writes)
        self._die("before", number)
        return number

    def end(self, number: int) -> None:
        """It was made, whatever came of it."""
        self._stay_dead()
        self._die("after", number)

    def _stay_dead(self) -> None:
        if self.crashed.is_set():
            raise Crash

    def _die(self, when: When, number: int) -> None:
        if self.at == number and self.when == when:
            self.crashed.set()
            raise Crash


@dataclass(frozen=True)
class Pace:
    """How long the operator waits for what does not come; as in its image, unless a fault plan holds that up."""

    resync_seconds: float = OperatorConfig().resync_seconds
    request_seconds: float = REQUEST_SECONDS
    watch_seconds: float = 300.0
    """After which a watch is opened anew; see ``handlers.configure``."""


class CrashingKube(Kube):
    """The operator's client, under a plan."""

    def __init__(self, api: client.ApiClient, metrics: Metrics, plan: CrashPlan, most_seconds: float) -> None:
        super().__init__(api, metrics)
        self._plan = plan
        self._most_seconds = most_seconds

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Any = None,
        seconds: float = REQUEST_SECONDS,
    ) -> bytes:
        seconds = min(seconds, self._most_seconds)
        if method == "GET":
            return await super()._call(method, path, query, body=body, seconds=seconds)
        call = f"{method} {path.split('/namespaces/')[-1]}{' ' + _name(body) if method == 'POST' else ''}"
        number = self._plan.begin(call)
        try:
            answer = await super()._call(method, path, query, body=body, seconds=seconds)
        except KubernetesError:
            self._plan.end(number)
            raise
        self._plan.end(number)
        return answer


class OperatorInProcess:
    """Looks after the FineTuneJobs of one namespace."""

    def __init__(
        self,
        kubeconfig: Path,
        url: str,
        token: str,
        namespace: str,
        plan: CrashPlan,
        clock: Callable[[], datetime],
        pace: Pace,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._url = url
        self._token = token
        self._namespace = namespace
        self._plan = plan
        self._clock = clock
        self._pace = pace
        self._watches: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self.controller: Controller | None = None

    async def start(self) -> None:
        """Connect, take stock, work, and then watch, as with kopf."""
        configuration = client.Configuration()
        await config.load_kube_config(config_file=str(self._kubeconfig), client_configuration=configuration)
        metrics = Metrics()
        kube = CrashingKube(client.ApiClient(configuration), metrics, self._plan, self._pace.request_seconds)
        settings = OperatorConfig(
            namespaces=(self._namespace,), workers=2, resync_seconds=self._pace.resync_seconds, progress_seconds=5
        )
        self.controller = Controller(kube, settings, metrics, self._clock)
        await self.controller.start()
        headers = {"Authorization": f"Bearer {self._token}"}
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        self._session = aiohttp.ClientSession(self._url, headers=headers, connector=connector, read_bufsize=2**20)
        ours, core = f"/apis/{constants.API_VERSION}", f"namespaces/{self._namespace}"
        watches = (
            (constants.JOB_KIND, f"{ours}/{core}/{constants.JOB_PLURAL}", {}),
            ("Job", f"/apis/batch/v1/{core}/jobs", {"labelSelector": constants.JOB_LABEL}),
            ("Pod", f"/api/v1/{core}/pods", {"labelSelector": constants.JOB_LABEL}),
        )
        self._watches = [asyncio.create_task(self._follow(self._session, *watch)) for watch in watches]

    def wake(self, key: ObjectKey) -> None:
        """Its clock has jumped, or somebody did what no watch shows."""
        if self.controller is not None:
            self.controller.dispatcher.wake(key)

    async def die(self) -> None:
        """Nothing of it is left, and nothing is tidied up in the cluster; it may have come half-way to life."""
        for task in self._watches:
            await cancel_and_wait(task)
        if self._session is not None:
            await self._session.close()
        if self.controller is not None:
            await self.controller.close()

    # --- watches, in the way of kopf's ``continuous_watch`` ---------------------------------------------------

    async def _follow(self, session: aiohttp.ClientSession, kind: str, path: str, query: dict[str, str]) -> None:
        """A listing, then what happens after it, through as many streams as it takes; anew when it is too old."""
        version = ""
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                if not version:
                    version = await self._list(session, kind, path, query)
                async for event in self._stream(session, path, {**query, "resourceVersion": version}):
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._note(kind, event["object"], event["type"])
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _list(self, session: aiohttp.ClientSession, kind: str, path: str, query: dict[str, str]) -> str:
        """What is there now is told without a type; returns the version of the listing."""
        async with session.get(path, params=query, timeout=_at_most(self._pace.request_seconds)) as answer:
            answer.raise_for_status()
            found = await answer.json()
        for raw in found["items"]:
            self._note(kind, raw, None)
        version: str = found["metadata"]["resourceVersion"]
        return version

    async def _stream(
        self, session: aiohttp.ClientSession, path: str, query: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        seconds = self._pace.watch_seconds
        parameters = {**query, "watch": "true", "timeoutSeconds": str(round(seconds))}
        async with session.get(path, params=parameters, timeout=_at_most(1.1 * seconds)) as stream:
            stream.raise_for_status()
            async for line in stream.content:
                yield json.loads(line)

    def _note(self, kind: str, raw: dict[str, Any], event: str | None) -> None:
        assert self.controller is not None
        meta = raw["metadata"]
        name = meta["name"] if kind == constants.JOB_KIND else meta["labels"][constants.JOB_LABEL]
        key = ObjectKey(self._namespace, name)
        if kind == constants.JOB_KIND and event == "DELETED":
            self.controller.deleted(key, meta["uid"])
        else:
            self.controller.saw(key, kind, {"kind": kind, **raw}, event)


def _at_most(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


def utc_now() -> datetime:
    """The real clock."""
    return datetime.now(UTC)


def _name(body: Any) -> str:
    name: str = body["metadata"].get("name", "")
    return name
