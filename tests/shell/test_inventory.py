"""At the start everything is read in a few lists, and what they show is neither read again nor news."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator import constants
from finetune_operator.errors import NotFound, Unavailable
from finetune_operator.shell.gather import Gatherer, Memory
from finetune_operator.shell.inventory import Inventory
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.object_key import ObjectKey
from makers import MINIMAL_SPEC, NAME, NAMESPACE, UID

pytestmark = pytest.mark.unit

KEY, OTHER = ObjectKey(NAMESPACE, NAME), ObjectKey(NAMESPACE, "other")
EVERYTHING = {constants.JOB_KIND: "", "Job": "", "Pod": ""}
"""Nothing was seen yet."""
RUNTIMES = "/apis/finetune-operator.io/v1alpha1/finetuneruntimes"


def a_raw(name: str, uid: str, version: str, owner: dict[str, Any], **labels: str) -> dict[str, Any]:
    """A child as a list shows it."""
    meta = {
        "namespace": NAMESPACE,
        "name": name,
        "uid": uid,
        "resourceVersion": version,
        "creationTimestamp": "2026-05-01T12:00:00Z",
        "labels": {f"finetune-operator.io/{label}": value for label, value in labels.items()},
        "ownerReferences": [{**owner, "controller": True}],
    }
    return {"metadata": meta, "spec": {}, "status": {}}


def a_raw_job(job: str, uid: str, *, name: str = "", version: str = "3", is_over: bool = False) -> dict[str, Any]:
    """A gang's Job."""
    labels = {"job": job, "job-uid": uid, "stage": "train", "attempt": "1"}
    raw = a_raw(name or f"{job}-a1", f"{uid}-job", version, {"kind": "FineTuneJob", "uid": uid}, **labels)
    if is_over:
        raw["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
    return raw


class Lists(Kube):
    """An API server with some objects, which answers with one at a time and notes what is asked of it."""

    def __init__(self, **objects: list[dict[str, Any]]) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {"finetuneruntimes": [], "jobs": [], "pods": []} | objects
        self.calls: list[str] = []

    async def get(self, path: str, query: Any = None) -> Any:
        """A page of a list."""
        self.calls.append(path)
        plural = path.rpartition("/")[2]
        if path.endswith(f"/finetunejobs/{NAME}"):
            return self.objects["finetunejobs"][0]
        if path == f"/api/v1/namespaces/{NAMESPACE}":
            return {"metadata": {}}
        if plural not in self.objects:
            raise NotFound(path, 404)
        items, meta = self.objects[plural], {"resourceVersion": "10"}
        if "limit" not in (query or {}):
            return {"metadata": meta, "items": items}
        at = int(query.get("continue", "0"))
        more = {"continue": str(at + 1)} if at + 1 < len(items) else {}
        return {"metadata": meta | more, "items": items[at : at + 1]}


def a_raw_finetune_job(name: str = NAME, uid: str = UID) -> dict[str, Any]:
    """One that was accepted."""
    meta = {"namespace": NAMESPACE, "name": name, "uid": uid, "resourceVersion": "5", "generation": 1}
    return {"metadata": meta, "spec": MINIMAL_SPEC, "status": {"observedGeneration": 1}}


async def taken(kube: Lists, *namespaces: str) -> Inventory:
    """An inventory of it."""
    inventory = Inventory()
    await inventory.take(kube, namespaces)
    return inventory


async def test_the_first_pass_lists_nothing_and_the_second_one_does() -> None:
    """What was read at the start is old soon."""
    kube = Lists(finetunejobs=[a_raw_finetune_job()], jobs=[a_raw_job(NAME, UID)])
    gatherer = Gatherer(kube, await taken(kube))
    for expected in ([], [f"finetunejobs/{NAME}", "jobs", "pods"]):
        kube.calls.clear()
        observed = await gatherer.gather(KEY, Memory())
        assert observed is not None
        assert [job.name for job in observed.jobs] == [f"{NAME}-a1"]
        assert [call for call in expected if not any(path.endswith(f"/{call}") for path in kube.calls)] == []
        assert sum(path.endswith(("/jobs", "/pods")) for path in kube.calls) == len(expected[1:])


@pytest.mark.parametrize("kind", list(EVERYTHING))
async def test_a_job_of_which_something_newer_was_seen_is_read(kind: str) -> None:
    """By a watch, after the lists were answered."""
    kube = Lists(finetunejobs=[a_raw_finetune_job()])
    assert (await taken(kube)).pop(KEY, {**EVERYTHING, kind: "10"}) is not None
    assert (await taken(kube)).pop(KEY, {**EVERYTHING, kind: "11"}) is None


async def test_every_stock_is_used_once() -> None:
    """What was read at the start is old soon."""
    inventory = await taken(Lists(finetunejobs=[a_raw_finetune_job()]))
    assert inventory.keys() == (KEY,)
    assert inventory.pop(KEY, EVERYTHING) is not None
    assert inventory.pop(KEY, EVERYTHING) is None
    assert inventory.keys() == ()
    await inventory.used_up(seconds=60)  # at once


async def test_passes_are_not_waited_for_for_ever() -> None:
    """Watches begin, whatever the passes do."""
    inventory = await taken(Lists(finetunejobs=[a_raw_finetune_job()]))
    await inventory.used_up(seconds=0.01)
    assert inventory.keys() == (KEY,)


async def test_all_pages_of_a_list_are_read_and_children_of_a_namesake_left_out() -> None:
    """The children of a job that was deleted a moment ago are not those of the new one."""
    mine = [a_raw_job(NAME, UID, name=f"{NAME}-a{number}") for number in (1, 2)]
    kube = Lists(finetunejobs=[a_raw_finetune_job()], jobs=[mine[0], a_raw_job(NAME, "an older one"), mine[1]])
    stock = (await taken(kube)).pop(KEY, EVERYTHING)
    assert stock is not None
    assert [job.name for job in stock.children.jobs] == [f"{NAME}-a1", f"{NAME}-a2"]


async def test_children_are_listed_after_their_jobs_have_been() -> None:
    """An attempt that a status speaks of and whose Job an older list lacks would be taken for a lost one."""

    class Slow(Lists):
        async def get(self, path: str, query: Any = None) -> Any:
            if path.endswith("/finetunejobs"):
                await asyncio.sleep(0.01)
            return await super().get(path, query)

    kube = Slow(finetunejobs=[a_raw_finetune_job()])
    await taken(kube)
    assert [path.rpartition("/")[2] for path in kube.calls if path != RUNTIMES] == ["finetunejobs", "jobs", "pods"]


async def test_a_listing_shows_no_news_where_it_shows_what_was_read() -> None:
    """The next listing, after a watch was cut, is news again: something may have been missed in between."""
    job = a_raw_job(NAME, UID)
    uid = job["metadata"]["uid"]
    inventory = await taken(Lists(finetunejobs=[a_raw_finetune_job()], jobs=[job]))
    assert [inventory.has(uid, "3"), inventory.has(uid, "3")] == [True, False]
    inventory = await taken(Lists(finetunejobs=[a_raw_finetune_job()], jobs=[job]))
    assert not inventory.has(uid, "4")
    assert not inventory.has("nobody", "3")


@pytest.mark.parametrize(
    ("namespaces", "path"),
    [((), "/apis/batch/v1/jobs"), ((NAMESPACE,), f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs")],
    ids=["everywhere", "in-one-namespace"],
)
async def test_gangs_that_are_over_are_not_waited_for(namespaces: tuple[str, ...], path: str) -> None:
    """The Jobs tell, where a status may not: an attempt is created before it is recorded."""
    jobs = [a_raw_job(NAME, "a"), a_raw_job("other", "b"), a_raw_job("third", "c", is_over=True)]
    kube = Lists(finetunejobs=[], jobs=jobs)
    inventory = await taken(kube, *namespaces)
    assert inventory.gangs == {KEY, OTHER}
    assert set(kube.calls) >= {path, RUNTIMES}


async def test_an_inventory_that_cannot_be_taken_is_empty() -> None:
    """Every job is read by itself then."""

    class Refusing(Lists):
        async def get(self, path: str, query: Any = None) -> Any:
            if path.endswith("/pods"):
                raise Unavailable("GET pods: 503", 503)
            return await super().get(path, query)

    inventory = Inventory()
    with pytest.raises(Unavailable):
        await inventory.take(Refusing(finetunejobs=[a_raw_finetune_job()]), ())
    assert (inventory.keys(), inventory.gangs) == ((), frozenset())
