"""Waiting twice as long each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.backoff import doubled

pytestmark = pytest.mark.unit

times = st.integers(-1, 10**6)


def test_each_wait_is_twice_the_last_one_up_to_a_limit() -> None:
    """Nothing before the first time."""
    assert [doubled(10, count, 60) for count in range(6)] == [0, 10, 20, 40, 60, 60]


@given(times, times)
def test_more_times_never_wait_shorter_or_beyond_the_limit(one: int, other: int) -> None:
    """Also after weeks, when two to that power would be no number any more."""
    fewer, more = sorted((one, other))
    assert 0 <= doubled(10, fewer, 300) <= doubled(10, more, 300) <= 300
