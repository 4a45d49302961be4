"""Reads that show the past."""

from __future__ import annotations

import pytest

from finetune_operator.errors import Conflict
from finetune_operator.shell.freshness import PATIENCE_SECONDS, Freshness

pytestmark = pytest.mark.unit

KEY, OTHER = ("team", "job"), ("team", "other")


def test_a_read_that_is_behind_what_was_seen_is_a_conflict() -> None:
    """Of the same kind and job; the same version and newer ones are well."""
    freshness = Freshness()
    freshness.note(KEY, "Pod", "100")
    with pytest.raises(Conflict, match="99 after 100"):
        freshness.check(KEY, "Pod", "99", now=0)
    freshness.check(KEY, "Pod", "100", now=0)
    freshness.check(KEY, "Job", "5", now=0)
    freshness.check(OTHER, "Pod", "5", now=0)


def test_reads_never_go_back_either() -> None:
    """What one pass has read the next one must know."""
    freshness = Freshness()
    freshness.check(KEY, "Pod", "100", now=0)
    with pytest.raises(Conflict):
        freshness.check(KEY, "Pod", "99", now=1)


def test_a_past_that_lasts_becomes_the_present() -> None:
    """etcd was restored from a backup."""
    freshness = Freshness()
    freshness.note(KEY, "Pod", "100")
    for now in (0.0, PATIENCE_SECONDS - 1):
        with pytest.raises(Conflict):
            freshness.check(KEY, "Pod", "7", now)
    freshness.check(KEY, "Pod", "7", PATIENCE_SECONDS)
    freshness.check(KEY, "Pod", "8", PATIENCE_SECONDS)


def test_patience_begins_anew_after_every_good_read() -> None:
    """Two stale answers an hour apart are no restored backup."""
    freshness = Freshness()
    freshness.note(KEY, "Pod", "100")
    with pytest.raises(Conflict):
        freshness.check(KEY, "Pod", "99", now=0)
    freshness.check(KEY, "Pod", "101", now=1)
    with pytest.raises(Conflict):
        freshness.check(KEY, "Pod", "100", now=3600)


def test_versions_that_are_no_numbers_are_not_compared() -> None:
    """The API promises numbers since Kubernetes 1.35 only."""
    freshness = Freshness()
    freshness.note(KEY, "Pod", "abc")
    freshness.check(KEY, "Pod", "9", now=0)
    freshness.check(KEY, "Pod", "aaa", now=0)


def test_a_job_that_is_gone_is_forgotten() -> None:
    """Its namesake begins anew."""
    freshness = Freshness()
    freshness.note(KEY, "Pod", "100")
    freshness.forget(KEY)
    freshness.check(KEY, "Pod", "1", now=0)
