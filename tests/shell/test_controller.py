"""What is remembered between passes, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.config import OperatorConfig
from finetune_operator.errors import NotFound, Unavailable
from finetune_operator.shell import controller as controller_module
from finetune_operator.shell.controller import Controller
from finetune_operator.shell.kube import Json, Kube
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.object_key import ObjectKey
from makers import MINIMAL_SPEC, NAME, NAMESPACE, UID

pytestmark = pytest.mark.unit

KEY, OTHER = ObjectKey(NAMESPACE, NAME), ObjectKey(NAMESPACE, "other")
POOL = "gpu"


class OneJob(Kube):
    """An API server with a new FineTuneJob, which names a runtime that is not there yet."""

    def __init__(self) -> None:
        meta = {"namespace": NAMESPACE, "name": NAME, "uid": UID, "resourceVersion": "7", "generation": 1}
        self.job: Json | None = {"metadata": meta, "spec": MINIMAL_SPEC, "status": {"observedGeneration": -1}}
        self.is_writing, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.is_down = False

    async def get(self, path: str, query: Any = None) -> Any:
        """The job, its namespace, and empty lists."""
        if self.is_down:
            raise Unavailable(path, 503)
        if path.endswith(f"/finetunejobs/{NAME}") and self.job is not None:
            return self.job
        if path.endswith(f"/namespaces/{NAMESPACE}"):
            return {"metadata": {}}
        if path.endswith("/finetunejobs"):
            return {"metadata": {"resourceVersion": "9"}, "items": [self.job] if self.job is not None else []}
        if path.endswith(("/jobs", "/pods")):
            return {"metadata": {"resourceVersion": "9"}, "items": []}
        raise NotFound(path, 404)

    async def get_metadata(self, path: str, query: Any) -> Json:
        """Of each item nothing else."""
        found = await self.get(path, query)
        return {**found, "items": [{"metadata": item["metadata"]} for item in found["items"]]}

    async def replace(self, path: str, body: Json) -> Json:
        """Takes a while, and finds that the job has gone."""
        self.is_writing.set()
        await self.may_go_on.wait()
        raise NotFound(path, 404)

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_job_that_is_deleted_while_a_pass_looks_at_it_is_forgotten() -> None:
    """What that pass does after it was forgotten is undone by another one."""
    kube = OneJob()
    controller = Controller(kube, OperatorConfig(), Metrics())
    controller.dispatcher.start()
    controller.dispatcher.wake(KEY)
    await asyncio.wait_for(kube.is_writing.wait(), 5)

    kube.job = None
    controller.deleted(KEY, UID)
    controller._line.take(KEY, POOL)  # as a pass does that is about to create a gang
    controller._gatherer.freshness.knows(KEY, "Job", "9")
    kube.may_go_on.set()
    await asyncio.sleep(0.2)
    await controller.close()
    assert not controller._line.busy_for(OTHER)
    assert controller._gatherer.freshness.newest(KEY, "Job") == ""
    assert controller.dispatcher._entries == {}


@pytest.mark.parametrize("first", ["the namesake", "the deletion"])
async def test_a_namesake_is_looked_at_whichever_is_shown_first(first: str) -> None:
    """kopf may show the new job before it shows that the old one is gone."""
    kube = OneJob()
    controller = Controller(kube, OperatorConfig(), Metrics())
    assert kube.job is not None
    old = {**kube.job, "metadata": {**kube.job["metadata"], "uid": "old", "resourceVersion": "5"}}
    controller.saw(KEY, "FineTuneJob", old, "ADDED")
    events = [
        lambda: controller.saw(KEY, "FineTuneJob", kube.job or {}, "ADDED"),
        lambda: controller.deleted(KEY, "old"),
    ]
    for show in events if first == "the namesake" else reversed(events):
        show()
    controller.dispatcher.start()
    await asyncio.wait_for(kube.is_writing.wait(), 5)
    await controller.close()


@pytest.mark.parametrize("namespaces", [(), (NAMESPACE,)], ids=["everywhere", "in its own namespace"])
async def test_a_job_whose_first_event_was_lost_is_found(namespaces: tuple[str, ...]) -> None:
    """Of a job that nobody knows no resync looks at; the watch goes on from a later version."""
    kube = OneJob()
    controller = Controller(kube, OperatorConfig(namespaces=namespaces), Metrics())
    controller.dispatcher.start()
    await controller.wake_unknown()
    await asyncio.wait_for(kube.is_writing.wait(), 5)
    assert controller.dispatcher.knows(KEY)
    await controller.close()


async def test_a_job_whose_passes_come_to_no_end_holds_up_others_for_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever hinders them: reads that fail, or something that changes all the time."""
    kube = OneJob()
    controller = Controller(kube, OperatorConfig(), Metrics())
    assert controller._line.take(KEY, POOL)
    kube.is_down = True
    for patience, is_held in ((60.0, True), (0.0, False)):
        monkeypatch.setattr(controller_module, "PATIENCE_SECONDS", patience)
        with pytest.raises(Unavailable):
            await controller.run_pass(KEY)
        assert bool(controller._line.busy_for(OTHER)) is is_held
    await controller.close()
