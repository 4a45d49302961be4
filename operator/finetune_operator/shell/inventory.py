"""What there is when the operator starts, read in three long lists instead of three reads for each job.

The first pass of each job decides on these lists, if by then nothing newer of it was seen. What happens afterwards the
watches show. They begin with listings of their own, in which whatever is still of the version that was read here is no
news; see decision 0018.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from finetune_operator import constants
from finetune_operator.core.observed import ChildJob, Pod, loose_pods, own_jobs, own_pods
from finetune_operator.shell.kube import RUNTIMES, Json, Kube, listing
from finetune_operator.shell.object_key import ObjectKey

PAGE = 250
"""Children of an answer. A pod is about 8 kB of JSON; what passes see of it is a tenth."""
_OURS = {"labelSelector": constants.JOB_LABEL}


@dataclass
class Children:
    """Jobs and pods of one FineTuneJob."""

    jobs: list[ChildJob] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    loose_pods: list[Pod] = field(default_factory=list)


@dataclass(frozen=True)
class Stock:
    """A FineTuneJob and its children."""

    job: Json
    children: Children
    versions: Mapping[str, str]
    """Kind -> version of the list."""


class Inventory:
    """Empty until it is taken."""

    def __init__(self) -> None:
        self._stocks: dict[ObjectKey, Stock] = {}
        self._unshown: dict[str, str] = {}
        """uid -> version of what no watch has shown yet."""
        self._is_used_up = asyncio.Event()
        self.gangs: frozenset[ObjectKey] = frozenset()
        """Jobs with an attempt whose Job is not over."""

    async def take(self, kube: Kube, namespaces: Sequence[str]) -> None:
        """Read everything; no namespaces: in all of them.

        Raises:
            KubernetesError: something could not be read; the inventory stays empty.
        """
        runtimes, lists = await asyncio.gather(
            kube.get(RUNTIMES), asyncio.gather(*(_read(kube, namespace) for namespace in namespaces or [""]))
        )
        self._stocks = {key: stock for each in lists for key, stock in each.stocks().items()}
        self._unshown = {uid: version for each in lists for uid, version in each.objects.items()}
        self._unshown |= {raw["metadata"]["uid"]: raw["metadata"]["resourceVersion"] for raw in runtimes["items"]}
        self.gangs = frozenset(key for each in lists for key in each.gangs)

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self._stocks.pop(key, None)
        self._note_use()

    def clear(self) -> None:
        """It is too old for anything that no pass has taken and no watch has shown."""
        self._stocks.clear()
        self._unshown.clear()
        self._note_use()

    def keys(self) -> tuple[ObjectKey, ...]:
        """Jobs that no pass has taken yet."""
        return tuple(self._stocks)

    async def used_up(self, *, seconds: float) -> None:
        """Wait until a pass has taken each job, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._stocks:
                    self._is_used_up.clear()
                    await self._is_used_up.wait()

    def pop(self, key: ObjectKey, at_least: Mapping[str, str]) -> Stock | None:
        """For the first pass of a job; None: later, or when something newer was seen than ``at_least``."""
        stock = self._stocks.pop(key, None)
        self._note_use()
        if stock is None or any(_is_older(version, at_least[kind]) for kind, version in stock.versions.items()):
            return None
        return stock

    def _note_use(self) -> None:
        if not self._stocks:
            self._is_used_up.set()

    def has(self, uid: str, version: str) -> bool:
        """Whether a listing of a watch shows something just as it was read here; asked once of each object."""
        return self._unshown.pop(uid, None) == version


@dataclass
class _Lists:
    jobs: dict[ObjectKey, Json] = field(default_factory=dict)
    children: dict[str, Children] = field(default_factory=lambda: defaultdict(Children))
    """By the uid of the FineTuneJob."""
    gangs: set[ObjectKey] = field(default_factory=set)
    objects: dict[str, str] = field(default_factory=dict)
    """uid -> version."""
    versions: dict[str, str] = field(default_factory=dict)
    """Kind -> version of the list."""

    def stocks(self) -> dict[ObjectKey, Stock]:
        return {key: Stock(raw, self.children[raw["metadata"]["uid"]], self.versions) for key, raw in self.jobs.items()}

    def add_job(self, raw: Json) -> None:
        meta = raw["metadata"]
        meta.pop("managedFields", None)
        self.jobs[ObjectKey(meta["namespace"], meta["name"])] = raw

    def add_child_job(self, raw: Json) -> None:
        meta = raw["metadata"]
        owner, stage = (meta["labels"].get(label, "") for label in (constants.JOB_UID_LABEL, constants.STAGE_LABEL))
        if stage == constants.STAGE_TRAIN and not _is_over(raw):
            self.gangs.add(ObjectKey(meta["namespace"], meta["labels"][constants.JOB_LABEL]))
        self.children[owner].jobs += own_jobs([raw], owner)

    def add_pod(self, raw: Json) -> None:
        children = self.children[raw["metadata"]["labels"].get(constants.JOB_UID_LABEL, "")]
        children.pods += own_pods([raw])
        children.loose_pods += loose_pods([raw])


async def _read(kube: Kube, namespace: str) -> _Lists:
    """One namespace; empty: all."""
    lists = _Lists()

    async def read(kind: str, add: Callable[[Json], None], query: Mapping[str, Any]) -> None:
        async for page in kube.pages(listing(kind, namespace), query):
            lists.versions[kind] = page["metadata"].get("resourceVersion", "")
            for raw in page["items"]:
                lists.objects[raw["metadata"]["uid"]] = raw["metadata"]["resourceVersion"]
                add(raw)

    # In one piece: pages of custom resources come from etcd, which takes the API server several times as long.
    # And before the others: children that a status speaks of must not seem to be missing.
    await read(constants.JOB_KIND, lists.add_job, {})
    await asyncio.gather(
        read("Job", lists.add_child_job, {**_OURS, "limit": str(PAGE)}),
        read("Pod", lists.add_pod, {**_OURS, "limit": str(PAGE)}),
    )
    return lists


def _is_older(version: str, at_least: str) -> bool:
    """Whether a list may lack what is of this version; of a version that is no number nothing is known."""
    return not version.isdecimal() or (at_least.isdecimal() and int(version) < int(at_least))


def _is_over(job: Json) -> bool:
    """Whether a ``batch/v1`` Job has come to its end."""
    conditions = job.get("status", {}).get("conditions", [])
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)
