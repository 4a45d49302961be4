"""Reads that show the past."""

from __future__ import annotations

import pytest

from finetune_operator.errors import Conflict
from finetune_operator.shell.freshness import PATIENCE_SECONDS, Freshness
from finetune_operator.shell.news import Interest
from finetune_operator.shell.object_key import ObjectKey

pytestmark = pytest.mark.unit

KEY, OTHER = ObjectKey("team", "job"), ObjectKey("team", "other")


def show(freshness: Freshness, version: str, *, interest: Interest = Interest.NEWS, is_listing: bool = False) -> None:
    """A watch shows a pod."""
    freshness.shown(KEY, "Pod", version, interest, is_listing=is_listing)


def read(freshness: Freshness, version: str, *, key: ObjectKey = KEY, kind: str = "Pod", now: float = 0) -> None:
    """Ask, and be answered at once."""
    freshness.check(key, kind, version, freshness.newest(key, kind), now)


def test_a_read_that_is_behind_what_was_seen_is_a_conflict() -> None:
    """Of the same kind and job; the same version and newer ones are well."""
    freshness = Freshness()
    show(freshness, "100")
    with pytest.raises(Conflict, match="99 after 100"):
        read(freshness, "99")
    read(freshness, "100")
    read(freshness, "5", kind="Job")
    read(freshness, "5", key=OTHER)


def test_what_was_shown_while_a_read_was_under_way_need_not_be_in_it() -> None:
    """It is news, and the next pass must know it."""
    freshness = Freshness()
    show(freshness, "100")
    floor = freshness.newest(KEY, "Pod")
    show(freshness, "101")
    freshness.check(KEY, "Pod", "100", floor, now=0)
    assert freshness.has_news(KEY)
    with pytest.raises(Conflict, match="100 after 101"):
        read(freshness, "100")


def test_reads_never_go_back_either() -> None:
    """What one pass has read the next one must know."""
    freshness = Freshness()
    read(freshness, "100")
    with pytest.raises(Conflict):
        read(freshness, "99", now=1)


def test_a_past_that_lasts_becomes_the_present() -> None:
    """etcd was restored from a backup."""
    freshness = Freshness()
    show(freshness, "100")
    for now in (0.0, PATIENCE_SECONDS - 1):
        with pytest.raises(Conflict):
            read(freshness, "7", now=now)
    read(freshness, "7", now=PATIENCE_SECONDS)
    read(freshness, "8", now=PATIENCE_SECONDS)


def test_patience_begins_anew_after_every_good_read() -> None:
    """Two stale answers an hour apart are no restored backup."""
    freshness = Freshness()
    show(freshness, "100")
    with pytest.raises(Conflict):
        read(freshness, "99", now=0)
    read(freshness, "101", now=1)
    with pytest.raises(Conflict):
        read(freshness, "100", now=3600)


def test_versions_that_are_no_numbers_are_not_compared() -> None:
    """The API promises numbers since Kubernetes 1.35 only."""
    freshness = Freshness()
    show(freshness, "abc")
    read(freshness, "9", now=0)
    read(freshness, "aaa", now=0)


def test_a_job_that_is_gone_is_forgotten() -> None:
    """Its namesake begins anew."""
    freshness = Freshness()
    show(freshness, "100")
    freshness.forget(KEY)
    read(freshness, "1", now=0)
    assert not freshness.has_news(KEY)


def test_an_event_of_what_was_read_since_is_no_news() -> None:
    """Whether it comes before the read or after it."""
    freshness = Freshness()
    show(freshness, "100")
    assert freshness.has_news(KEY)
    read(freshness, "102")
    show(freshness, "101")
    assert not freshness.has_news(KEY)
    show(freshness, "103")
    assert freshness.has_news(KEY)
    assert not freshness.has_news(OTHER)


def test_an_event_that_no_decision_can_see_is_no_news_but_must_be_in_the_next_read() -> None:
    """It may have come with another that was missed."""
    freshness = Freshness()
    show(freshness, "100", interest=Interest.NONE)
    assert not freshness.has_news(KEY)
    with pytest.raises(Conflict):
        read(freshness, "99")


def test_what_a_pass_wrote_itself_is_no_news() -> None:
    """If it is the only object of its kind; of several the others may have changed before."""
    freshness = Freshness()
    show(freshness, "100")
    freshness.created(KEY, "Pod", "101")
    assert freshness.has_news(KEY)
    freshness.knows(KEY, "Pod", "101")
    assert not freshness.has_news(KEY)


def test_how_a_pod_ended_is_news_although_a_read_has_found_that_it_is_gone() -> None:
    """The event came late; what it shows cannot be read any more."""
    freshness = Freshness()
    read(freshness, "100")
    freshness.shown(KEY, "Pod", "99", Interest.NONE, is_evidence=True)
    assert not freshness.has_news(KEY)
    freshness.shown(KEY, "Pod", "99", Interest.NEWS, is_evidence=True)
    assert freshness.has_news(KEY)
    read(freshness, "100")
    assert not freshness.has_news(KEY)


def test_everything_in_a_listing_is_news() -> None:
    """A watch begins anew when it has missed something, or when etcd counts from an earlier time again."""
    freshness = Freshness()
    read(freshness, "100")
    show(freshness, "7", is_listing=True)
    assert freshness.has_news(KEY)


def test_routine_is_news_for_those_who_ask_for_it() -> None:
    """And no evidence: a read of that version has seen it."""
    freshness = Freshness()
    freshness.shown(KEY, "Pod", "7", Interest.ROUTINE, is_evidence=True)
    assert (freshness.has_news(KEY), freshness.has_news(KEY, or_routine=True)) == (False, True)
    freshness.knows(KEY, "Pod", "7")
    freshness.shown(KEY, "Pod", "7", Interest.ROUTINE, is_evidence=True)
    assert not freshness.has_news(KEY, or_routine=True)
