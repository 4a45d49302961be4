"""What cannot be created is said, not only logged."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.constants import JOB_KIND, JOB_UID_LABEL
from finetune_operator.core.actions import Actions, Deletion, Sweep
from finetune_operator.errors import AlreadyExists, ChildRefused, Conflict, Forbidden, Invalid
from finetune_operator.shell.execute import execute
from finetune_operator.shell.kube import Kube
from kstatus import kstatus
from makers import NAME, UID, JobMaker, a_job, accepted

pytestmark = pytest.mark.unit

ACTIONS = Actions(create=({"kind": "Job", "metadata": {"name": f"{NAME}-prepare"}},), status={"message": "decided"})
QUOTA = 'jobs.batch "support-prepare" is forbidden: exceeded quota: small'


class Refusing(Kube):
    """An API server that creates nothing."""

    def __init__(self, error: Exception, existing: dict[str, Any] | None = None) -> None:
        self.error = error
        self.existing = existing
        self.written: list[dict[str, Any]] = []
        self.deleted: list[tuple[str, str]] = []

    async def create(self, path: str, body: Any) -> Any:
        """Refused."""
        raise self.error

    async def get(self, path: str, query: Any = None) -> Any:
        """What is in the way."""
        return {"metadata": self.existing}

    async def replace(self, path: str, body: Any) -> Any:
        """The status."""
        assert body["metadata"]["resourceVersion"] == "1"
        self.written.append(body["status"])

    async def delete(self, path: str, body: Any, query: Any = None) -> None:
        """Whatever is in the way."""
        self.deleted.append((path.rpartition("/")[2], body["preconditions"]["uid"]))


async def _refused(kube: Refusing, job: JobMaker) -> FineTuneJobStatus:
    with pytest.raises(ChildRefused):
        await execute(kube, job.build(), ACTIONS)
    (status,) = kube.written
    return FineTuneJobStatus.model_validate(status)


@pytest.mark.parametrize("error", [Forbidden(QUOTA, 403), Invalid(QUOTA, 422)], ids=["quota", "policy"])
async def test_refusal_is_said_in_the_api_servers_words(error: Exception) -> None:
    """Once: the same words are not written again."""
    job = accepted().job
    status = await _refused(Refusing(error), job)
    reconciling = {c.type: c for c in status.conditions}["Reconciling"]
    assert (reconciling.status, reconciling.reason) == ("True", "ChildRefused")
    assert "Job support-prepare cannot be created" in status.message
    assert "exceeded quota: small" in reconciling.message
    assert kstatus(status, 1) == "InProgress"
    again = Refusing(error)
    with pytest.raises(ChildRefused):
        await execute(again, job.with_status(status).build(), ACTIONS)
    assert again.written == []


async def test_refusal_is_forgotten_when_the_child_is_created() -> None:
    """The next decision replaces it."""
    story = accepted()
    story.job = story.job.with_status(await _refused(Refusing(Forbidden(QUOTA, 403)), story.job))
    story.sees()
    assert story.condition("Reconciling") == ("False", "Preparing")


async def test_somebody_elses_child_is_named() -> None:
    """And never touched."""
    kube = Refusing(AlreadyExists("exists", 409), {"ownerReferences": [{"kind": "Deployment", "uid": "x"}]})
    assert "does not belong to this FineTuneJob" in (await _refused(kube, a_job())).message


@pytest.mark.parametrize(
    "existing",
    [
        {"ownerReferences": [{"kind": JOB_KIND, "name": NAME, "uid": "an-earlier-one"}]},
        {"ownerReferences": [{"uid": UID}], "deletionTimestamp": "2026-05-01T12:00:00Z"},
    ],
    ids=["of-a-deleted-namesake", "ours-and-going"],
)
async def test_child_that_is_being_collected_is_waited_for(existing: dict[str, Any]) -> None:
    """It takes the garbage collector a moment; nobody has to read about it."""
    kube = Refusing(AlreadyExists("exists", 409), existing)
    with pytest.raises(Conflict):
        await execute(kube, a_job().build(), ACTIONS)
    assert kube.written == []


OURS = {"uid": "u", "ownerReferences": [{"uid": UID}], "labels": {JOB_UID_LABEL: UID}}


async def test_own_child_that_is_there_already_is_taken_over() -> None:
    """By a pass that died, or by a second operator."""
    kube = Refusing(AlreadyExists("exists", 409), OURS)
    await execute(kube, a_job().build(), ACTIONS)
    assert kube.written == [ACTIONS.status]


@pytest.mark.parametrize("taken", ["ownerReferences", "labels"])
async def test_child_that_somebody_took_from_us_is_made_anew(taken: str) -> None:
    """Without labels it would not be found, without its owner it would outlive the job; its uid guards a namesake."""
    kube = Refusing(AlreadyExists("exists", 409), {key: value for key, value in OURS.items() if key != taken})
    with pytest.raises(Conflict):
        await execute(kube, a_job().build(), ACTIONS)
    assert kube.deleted == [(f"{NAME}-prepare", "u")]
    assert kube.written == []


class Emptied(Kube):
    """An API server that notes what it is told to delete."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, path: str, body: Any, query: Any = None) -> None:
        """Gone."""
        self.deleted.append(path.rpartition("/")[2])


async def test_jobs_are_deleted_last() -> None:
    """An operator that dies in between finds one of them, and removes the rest as well."""
    kube = Emptied()
    actions = Actions(sweep=(Sweep(stage="train"),), delete=(Deletion("Job", f"{NAME}-a1"),))
    await execute(kube, a_job().build(), actions)
    assert kube.deleted == ["configmaps", "services", f"{NAME}-a1"]
