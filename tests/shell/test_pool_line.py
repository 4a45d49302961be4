"""One gang at a time waits for the nodes of a pool."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.shell.gather import Gatherer, ObjectKey
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.pool_line import PoolLine

pytestmark = pytest.mark.unit

FIRST, SECOND, THIRD = (ObjectKey("team", name) for name in ("first", "second", "third"))
POOL = "nodes"


class Line(PoolLine):
    """Notes who is woken."""

    def __init__(self) -> None:
        self.woken: list[ObjectKey] = []
        super().__init__(self.woken.append)

    def waits(self, key: ObjectKey) -> None:
        self.update(key, waits_for_nodes=POOL, stands_in_line=None)

    def stands(self, key: ObjectKey) -> None:
        self.update(key, waits_for_nodes=None, stands_in_line=POOL)

    def is_through(self, key: ObjectKey) -> None:
        self.update(key, waits_for_nodes=None, stands_in_line=None)


def test_the_next_in_line_holds_the_pool_before_it_knows() -> None:
    """In the order in which they came."""
    line = Line()
    assert line.take(FIRST, POOL)
    line.waits(FIRST)
    line.stands(SECOND)
    line.stands(THIRD)
    assert (line.take(SECOND, POOL), line.busy_for(FIRST), line.busy_for(SECOND)) == (False, frozenset(), {POOL})
    line.is_through(FIRST)
    assert line.woken == [SECOND]
    assert (line.take(THIRD, POOL), line.take(SECOND, POOL)) == (False, True)
    line.forget(SECOND)
    line.forget(THIRD)
    assert (line.woken, line.take(FIRST, POOL)) == ([SECOND, THIRD], True)


def test_nobody_begins_before_every_gang_that_may_wait_was_seen() -> None:
    """After a restart, in whatever order the passes come."""
    line = Line()
    line.expect({FIRST, SECOND})
    assert not line.take(THIRD, POOL)
    line.see(FIRST)
    assert not line.take(THIRD, POOL)
    line.waits(SECOND)
    line.see(SECOND)
    assert not line.take(THIRD, POOL)
    line.is_through(SECOND)
    assert line.take(THIRD, POOL)


def a_child(name: str, **status: Any) -> dict[str, Any]:
    """A Job as a list shows it."""
    labels = {"finetune-operator.io/job": name}
    return {"metadata": {"namespace": "team", "name": f"{name}-a1", "labels": labels}, "status": status}


class Recorder(Kube):
    """An API server with some Jobs, which notes what is asked of it."""

    def __init__(self, *jobs: dict[str, Any]) -> None:
        self.jobs = jobs
        self.calls: list[str] = []

    async def get(self, path: str, query: Any = None) -> Any:
        """A list."""
        self.calls.append(path)
        return {"items": self.jobs}


@pytest.mark.parametrize(
    ("namespaces", "paths"),
    [((), ["/apis/batch/v1/jobs"]), (("team",), ["/apis/batch/v1/namespaces/team/jobs"])],
    ids=["everywhere", "in-one-namespace"],
)
def test_gangs_that_are_over_are_not_waited_for(namespaces: tuple[str, ...], paths: list[str]) -> None:
    """The Jobs tell, where a status may not: an attempt is created before it is recorded."""
    kube = Recorder(
        a_child("first", active=4),
        a_child("second"),
        a_child("third", conditions=[{"type": "Failed", "status": "True"}]),
    )
    found = asyncio.run(Gatherer(kube).find_gangs(namespaces))
    assert (found, kube.calls) == ({FIRST, SECOND}, paths)
