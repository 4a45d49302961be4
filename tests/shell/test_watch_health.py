"""A watch is dead when it does not show what was written or read; nothing else makes it so."""

from __future__ import annotations

import pytest

from finetune_operator.shell.object_key import ObjectKey
from finetune_operator.shell.watch_health import WatchHealth

pytestmark = pytest.mark.unit

KEY, OTHER = ObjectKey("research", "support"), ObjectKey("research", "other")
LIMIT, LATE = 120.0, 121.0


@pytest.fixture
def health() -> WatchHealth:
    """Of an operator that was shown one job, version 10."""
    health = WatchHealth(LIMIT)
    health.saw(KEY, "FineTuneJob", "u", "10")
    return health


def test_nothing_written_expects_nothing(health: WatchHealth) -> None:
    """A quiet night is no dead watch."""
    assert health.complaint(1e6) == ""


def test_a_write_that_is_not_shown_in_time_names_the_watch_and_the_job(health: WatchHealth) -> None:
    """Not before the limit."""
    health.expect(KEY, "FineTuneJob", "u", "11", now=0)
    assert health.complaint(LIMIT) == ""
    assert health.complaint(LATE) == (
        "the watch of FineTuneJobs is silent: it has not shown what was written or read of research/support 121 s ago"
    )


def test_what_is_read_again_and_again_is_late_from_the_first_time_on(health: WatchHealth) -> None:
    """The pod does not change, and no event of it comes."""
    for now in (0, 60, LIMIT):
        health.expect(KEY, "Pod", "p", "11", now=now)
    assert "the watch of Pods is silent" in health.complaint(LATE)


def test_the_watches_are_told_apart(health: WatchHealth) -> None:
    """The watch of FineTuneJobs lives, that of Jobs is dead."""
    health.expect(KEY, "FineTuneJob", "u", "11", now=0)
    health.expect(KEY, "Job", "j", "12", now=0)
    health.saw(KEY, "FineTuneJob", "u", "11")
    assert "the watch of Jobs is silent" in health.complaint(LATE)
    health.saw(KEY, "Job", "j", "12")
    assert health.complaint(LATE) == ""


@pytest.mark.parametrize(
    ("shown", "is_alive"),
    [("10", False), ("11", True), ("12", True), ("9", False), ("100", True)],
    ids=["as before", "as written", "changed since", "older", "more digits"],
)
def test_only_the_written_version_or_a_later_one_is_an_answer(health: WatchHealth, shown: str, is_alive: bool) -> None:
    """Events of one object are merged, and an old one may still be under way."""
    health.expect(KEY, "FineTuneJob", "u", "11", now=0)
    health.saw(KEY, "FineTuneJob", "u", shown)
    assert (health.complaint(LATE) == "") is is_alive


def test_an_event_may_come_before_the_answer_to_the_write(health: WatchHealth) -> None:
    """Then there is nothing to wait for."""
    health.saw(KEY, "FineTuneJob", "u", "11")
    health.expect(KEY, "FineTuneJob", "u", "11", now=0)
    assert health.complaint(LATE) == ""


def test_later_writes_do_not_put_the_limit_off(health: WatchHealth) -> None:
    """A job that writes its progress every 30 s would keep a dead watch alive for ever."""
    for second in range(0, 121, 30):
        health.expect(KEY, "FineTuneJob", "u", str(11 + second), now=second)
    assert health.complaint(LATE) != ""
    health.saw(KEY, "FineTuneJob", "u", "11")
    assert health.complaint(LATE) == ""
    assert health.complaint(LATE + 30) != ""


@pytest.mark.parametrize("how", ["forgotten", "not found", "namesake"])
def test_what_was_deleted_meanwhile_expects_nothing(health: WatchHealth, how: str) -> None:
    """Also when the answer to a write comes after the event of the deletion."""
    health.expect(KEY, "FineTuneJob", "u", "11", now=0)
    health.expect(KEY, "Job", "j", "12", now=0)
    if how == "forgotten":
        health.forget(KEY)
        health.expect(KEY, "Job", "k", "13", now=0)
        health.saw(KEY, "Job", "j", "14")
        health.expect(KEY, "Job", "j", "14", now=0)
    else:
        health.keep_only(KEY, {"u2"} if how == "namesake" else set())
    assert health.complaint(LATE) == ""


def test_a_fresh_read_that_has_the_object_is_no_event(health: WatchHealth) -> None:
    """The API server is well; it is the watch that is in doubt."""
    health.expect(KEY, "Job", "j", "12", now=0)
    health.keep_only(KEY, {"u", "j"})
    assert health.complaint(LATE) != ""


def test_jobs_do_not_answer_for_each_other(health: WatchHealth) -> None:
    """Watches may be one per namespace."""
    health.saw(OTHER, "FineTuneJob", "o", "20")
    health.expect(KEY, "FineTuneJob", "u", "11", now=0)
    health.saw(OTHER, "FineTuneJob", "o", "21")
    assert "research/support" in health.complaint(LATE)
