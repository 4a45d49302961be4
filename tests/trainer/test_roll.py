"""Which pod is lost when, and which one is to blame, without waiting for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.roll import BEAT_SECONDS, GRACE_SECONDS, SILENCE_SECONDS, Roll

pytestmark = pytest.mark.unit

TICK = 0.2


def a_roll(node: int = 0, nodes: int = 3, processes_per_node: int = 2) -> Roll:
    """Of a gang with two ranks on each of three nodes."""
    return Roll(node, nodes, processes_per_node)


def pass_time(roll: Roll, since: float, until: float) -> float | None:
    """Judge as the launcher does; the time of the first loss."""
    ticks = int((until - since) / TICK)
    for now in (since + TICK * tick for tick in range(1, ticks + 1)):
        if roll.judge(now):
            return now
    return None


def test_a_pod_that_never_came_is_not_judged() -> None:
    """Pods of a gang start minutes apart."""
    roll = a_roll()

    assert pass_time(roll, 0, 600) is None
    assert roll.loss is None


def test_silence_is_a_loss_that_names_node_and_ranks() -> None:
    """Without any FIN."""
    roll = a_roll()
    roll.heard(1, 0.0)
    lost_at = pass_time(roll, 0, 60)

    assert lost_at is not None
    assert lost_at == pytest.approx(SILENCE_SECONDS, abs=2 * TICK)
    assert roll.loss is not None
    assert (roll.loss.node, roll.loss.rank) == (1, 2)
    assert roll.loss.message == "ranks 2-3 (node 1) have not been heard of for 12 s"


def test_a_closed_connection_is_a_loss_after_a_moment() -> None:
    """A goodbye may be in flight, or the peer calls again."""
    roll = a_roll(processes_per_node=1)
    roll.heard(1, 0.0)
    roll.closed(1, 1.0)
    roll.judge(1.0)

    assert roll.judge(1.0 + GRACE_SECONDS - 0.1) == []
    assert roll.judge(1.0 + GRACE_SECONDS) == [(1, "closed")]
    assert roll.loss is not None
    assert roll.loss.message == "rank 1 (node 1) has gone away without a word"


@pytest.mark.parametrize("what", ["heard", "left"])
def test_what_comes_within_the_moment_prevents_the_loss(what: str) -> None:
    """A new connection, or the goodbye that was on its way."""
    roll = a_roll()
    roll.heard(1, 0.0)
    roll.closed(1, 0.5)
    if what == "heard":
        roll.heard(1, 1.0)
    else:
        roll.left(1, 0)

    assert pass_time(roll, 1.0, 10.0) is None


def test_a_frozen_launcher_does_not_blame_the_others() -> None:
    """What they said meanwhile still waits to be read."""
    roll = a_roll()
    roll.heard(1, 0.0)
    roll.judge(0.1)

    assert roll.judge(100.0) == []
    roll.heard(1, 100.1)
    assert pass_time(roll, 100.0, 110.0) is None


def test_a_cause_replaces_a_victim_and_stays() -> None:
    """The first cause: what follows it are consequences."""
    roll = a_roll()
    roll.ended(1, 2, 76)
    assert roll.loss is not None
    assert not roll.loss.is_cause
    roll.ended(2, 5, 137)
    roll.ended(1, 3, 1)

    assert (roll.loss.rank, roll.loss.message) == (5, "rank 5 (node 2) ended with 137")


@pytest.mark.parametrize(("code", "text"), [(77, "77 (OutOfMemory)"), (1, "1"), (75, "75 (Preempted)")])
def test_a_goodbye_with_a_failure_names_the_first_rank(code: int, text: str) -> None:
    """Its launcher failed before a worker could."""
    roll = a_roll()
    roll.left(1, code)

    assert roll.loss is not None
    assert roll.loss.message == f"rank 2 (node 1) ended with {text}"


def test_who_never_came_is_the_cause_of_a_failed_rendezvous() -> None:
    """Launcher 0 hears all; the others can say it of launcher 0 only."""
    first, second = a_roll(0), a_roll(1)
    first.heard(1, 0.0)
    second.heard(0, 0.0)

    assert first.judge_missing() == [(2, "missing")]
    assert first.loss is not None
    assert first.loss.message == "ranks 4-5 (node 2) have never come"
    assert second.judge_missing() == []


def test_waiting_ends_when_nobody_can_say_more() -> None:
    """All were victims of something between them."""
    roll = a_roll()
    roll.heard(1, 0.0)
    roll.heard(2, 0.0)
    assert not roll.is_settled
    roll.ended(1, 2, 76)
    assert not roll.is_settled
    roll.ended(2, 4, 76)
    assert roll.is_settled

    other = a_roll(1)
    other.ended(0, 0, 76)
    assert not other.is_settled
    other.left(0, 76)
    assert other.is_settled


@given(gaps=st.lists(st.floats(0.01, SILENCE_SECONDS - 0.01), max_size=30), code=st.sampled_from([None, 0]))
def test_who_is_heard_in_time_is_never_lost(gaps: list[float], code: int | None) -> None:
    """However irregularly; and after a goodbye there is nothing to lose."""
    roll = a_roll()
    now = 0.0
    roll.heard(1, now)
    for gap in gaps:
        assert pass_time(roll, now, now + gap) is None
        now += gap
        roll.heard(1, now)
    if code is not None:
        roll.left(1, code)
        roll.closed(1, now)
        assert pass_time(roll, now, now + 60) is None
    assert roll.loss is None


@given(beats=st.integers(0, 20), closes=st.booleans(), tick=st.floats(0.05, BEAT_SECONDS - 0.1))
def test_who_falls_silent_is_lost_in_time_and_once(beats: int, closes: bool, tick: float) -> None:
    """Neither sooner nor later than promised, whatever the rhythm of judging."""
    roll = a_roll(2)
    for beat in range(beats + 1):
        roll.heard(0, beat * BEAT_SECONDS)
        roll.judge(beat * BEAT_SECONDS)
    last = now = beats * BEAT_SECONDS
    if closes:
        roll.closed(0, last)
    limit = GRACE_SECONDS if closes else SILENCE_SECONDS
    verdicts = []
    while now < last + 3 * SILENCE_SECONDS:
        now += tick
        for _ in roll.judge(now):
            verdicts.append(now - last)

    assert len(verdicts) == 1
    assert limit <= verdicts[0] <= limit + tick + 1e-6
