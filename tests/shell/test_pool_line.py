"""One gang per pool waits for nodes; the others stand in line and get their turn in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.shell import pool_line
from finetune_operator.shell.object_key import ObjectKey
from finetune_operator.shell.pool_line import PoolLine

pytestmark = pytest.mark.unit

A, B, C, D = (ObjectKey("research", name) for name in "abcd")


class Line(PoolLine):
    """Remembers who was woken."""

    def __init__(self) -> None:
        self.woken: list[ObjectKey] = []
        super().__init__(self.woken.append, most_standing_by=1)

    def waits(self, key: ObjectKey, pool: str = "gpu") -> None:
        """The job's gang waits for nodes of the pool."""
        self.update(key, waits_for_nodes=pool, stands_in_line=None)

    def stands(self, key: ObjectKey, pool: str = "gpu") -> None:
        """The job's gang is not created because of somebody else's."""
        self.update(key, waits_for_nodes=None, stands_in_line=pool)

    def is_done(self, key: ObjectKey) -> None:
        """The gang has its nodes, or is none any more."""
        self.update(key, waits_for_nodes=None, stands_in_line=None)


@pytest.fixture
def line() -> Line:
    """Nobody holds anything."""
    return Line()


def test_a_pool_is_held_by_one(line: Line) -> None:
    """It is busy for all others and not for the holder, who may take it again; other pools are free."""
    assert line.take(A, "gpu")
    assert line.take(A, "gpu")
    assert not line.take(B, "gpu")
    assert line.take(B, "big")
    assert (line.busy_for(A), line.busy_for(B), line.busy_for(C)) == ({"big"}, {"gpu"}, {"gpu", "big"})


def test_those_in_line_are_woken_one_by_one_in_their_order(line: Line) -> None:
    """The pool is theirs before they know it, so that nobody gets in between."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    assert line.woken == []
    line.is_done(A)
    assert line.woken == [B]
    assert not line.take(A, "gpu")
    assert not line.take(C, "gpu")
    line.waits(B)
    assert line.woken == [B]
    line.is_done(B)
    assert line.woken == [B, C]


def a_pod(number: int, node: str = "", owner: str = "gang") -> dict[str, Any]:
    """As a watch shows it."""
    metadata = {"uid": f"pod-{number}", "ownerReferences": [{"uid": owner}]}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}}


def test_the_next_one_is_woken_when_a_watch_shows_the_last_pod_on_its_node(line: Line) -> None:
    """Without a pass over the gang that has its nodes now; pods of anything else, or shown again, do not count."""
    line.waits(A)
    line.stands(B)
    line.created(A, "gang", 2)
    for pod in (a_pod(1), a_pod(1, "n1"), a_pod(1, "n1"), a_pod(2), a_pod(3, "n2", owner="prepare")):
        line.saw_pod(A, pod)
    assert not line.take(B, "gpu")

    line.saw_pod(A, a_pod(2, "n2"))
    assert line.take(B, "gpu")
    assert line.busy_for(A) == {"gpu"}


def test_the_next_one_gets_ready_while_a_gang_finds_its_nodes(line: Line) -> None:
    """The one after that waits as before."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    assert line.busy_for(B) == {"gpu"}
    line.created(A, "gang", 1)
    assert line.woken == [B]
    assert (line.busy_for(B), line.busy_for(C)) == (frozenset(), {"gpu"})
    assert not line.take(B, "gpu")


def test_one_whose_turn_comes_while_it_gets_ready_is_not_woken_once_more(line: Line) -> None:
    """Its pass finds out by itself; unless it began before there was anything to get ready for."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    line.created(A, "gang of a", 1)
    line.busy_for(B)  # a pass begins
    line.is_done(A)
    assert line.take(B, "gpu")
    line.waits(B)
    assert line.woken == [B]

    line.busy_for(C)
    line.created(B, "gang of b", 1)
    line.is_done(B)
    assert line.woken == [B, C, C]


async def test_one_that_stands_by_goes_on_when_the_last_pod_has_its_node(line: Line) -> None:
    """In the pass that it is in."""
    line.waits(A)
    line.stands(B)
    line.created(A, "gang", 1)
    turn = asyncio.create_task(line.turn(B, "gpu"))
    await asyncio.sleep(0.05)
    assert not turn.done()
    line.saw_pod(A, a_pod(1, "n1"))
    assert await turn
    assert line.woken == [B]
    assert line.busy_for(A) == {"gpu"}


async def test_one_that_stands_by_in_vain_stands_in_line_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its old place: there is no room, and a pass must not wait for some."""
    monkeypatch.setattr(pool_line, "STAND_BY_SECONDS", 0.01)
    line.waits(A)
    line.stands(B)
    line.stands(C)
    line.created(A, "gang", 1)
    assert not await line.turn(B, "gpu")
    assert line.busy_for(B) == {"gpu"}
    line.is_done(A)
    assert line.woken == [B, B]
    assert await line.turn(B, "gpu")


async def test_no_more_stand_by_than_there_are_workers_to_spare(line: Line) -> None:
    """Whoever comes later stands in line as before, and is woken when it is its turn."""
    for holder, following, pool in ((A, B, "gpu"), (C, D, "big")):
        line.waits(holder, pool)
        line.stands(following, pool)
        line.created(holder, f"gang of {holder.name}", 1)
    turn = asyncio.create_task(line.turn(B, "gpu"))
    await asyncio.sleep(0)
    assert not await asyncio.wait_for(line.turn(D, "big"), 0.05)
    assert "big" in line.busy_for(D)
    line.is_done(A)
    assert await turn
    line.is_done(C)
    assert line.woken == [B, D, D]


async def test_a_job_that_is_deleted_while_it_stands_by_creates_nothing(line: Line) -> None:
    """Nor does it hold up the others."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    line.created(A, "gang", 1)
    turn = asyncio.create_task(line.turn(B, "gpu"))
    await asyncio.sleep(0)
    line.forget(B)
    assert not await turn
    line.is_done(A)
    assert line.woken == [B, C]


async def test_one_whose_turn_came_before_it_was_ready_need_not_wait(line: Line) -> None:
    """The pods found their nodes while its pass was reading."""
    line.waits(A)
    line.stands(B)
    line.created(A, "gang", 1)
    line.is_done(A)
    assert await line.turn(B, "gpu")


def test_looking_again_does_not_lose_the_place_in_the_line(line: Line) -> None:
    """Passes come in any order."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    line.stands(B)
    line.is_done(A)
    assert line.woken == [B]


def test_one_that_stands_in_the_line_of_a_pool_that_became_free_is_woken_at_once(line: Line) -> None:
    """The holder let go while the pass that decided to stand in line was under way."""
    line.stands(B)
    assert line.woken == [B]
    assert line.take(B, "gpu")


@pytest.mark.parametrize("how", ["forgotten", "has nodes", "goes elsewhere", "stands in another line"])
def test_whoever_leaves_lets_the_next_one_in(line: Line, how: str) -> None:
    """A deleted job, and one that moved to another placement, hold up nobody."""
    line.waits(A)
    line.stands(B)
    if how == "forgotten":
        line.forget(A)
    elif how == "has nodes":
        line.is_done(A)
    elif how == "goes elsewhere":
        line.waits(A, "big")
        assert line.busy_for(B) == {"big"}
    else:
        line.waits(C, "big")
        line.stands(A, "big")
    assert line.woken == [B]


@pytest.mark.parametrize("how", ["forgotten", "does not want it any more", "stands elsewhere"])
def test_whoever_left_the_line_is_not_called(line: Line, how: str) -> None:
    """The pool would stay with a job that does not use it."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    if how == "forgotten":
        line.forget(B)
    elif how == "does not want it any more":
        line.is_done(B)
    else:
        line.waits(ObjectKey("research", "d"), "big")
        line.stands(B, "big")
    line.is_done(A)
    assert line.woken == [C]


def test_a_turn_that_is_not_used_goes_to_the_next_one(line: Line) -> None:
    """The one that was called was suspended, or deleted, meanwhile."""
    line.waits(A)
    line.stands(B)
    line.stands(C)
    line.is_done(A)
    line.forget(B)
    assert line.woken == [B, C]
    line.is_done(C)
    assert line.busy_for(A) == frozenset()


def test_a_gang_that_waited_before_a_restart_takes_its_pool_again(line: Line) -> None:
    """The first pass of each comes in any order; a second gang that waits already is not thrown out."""
    line.waits(A)
    line.waits(B)
    assert line.busy_for(A) == frozenset()
    assert line.busy_for(B) == {"gpu"}


def test_nobody_begins_before_every_gang_that_may_wait_was_seen(line: Line) -> None:
    """After a restart, in whatever order the passes come."""
    line.expect({A, B})
    assert not line.take(C, "gpu")
    line.see(A)
    assert not line.take(C, "gpu")
    line.waits(B)
    line.see(B)
    assert not line.take(C, "gpu")
    line.is_done(B)
    assert line.take(C, "gpu")


def test_a_gang_that_was_deleted_before_its_first_pass_is_not_waited_for(line: Line) -> None:
    """Nobody will look at it any more."""
    line.expect([A])
    assert not line.take(B, "gpu")
    line.forget(A)
    assert line.take(B, "gpu")
