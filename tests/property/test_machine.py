"""Anything may happen to a job in any order; afterwards it always comes to rest, and no gang ever met another."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from machine import JobMachine

pytestmark = pytest.mark.unit

STORIES = 20
"""Of one run. In a longer one many are variants of others; several short ones find more."""


@pytest.mark.parametrize("run", range(2 * settings.default.max_examples // STORIES))
def test_job_comes_to_rest_and_breaks_no_law(run: int) -> None:
    """Each run tells other stories."""
    run_state_machine_as_test(
        JobMachine, settings=settings(max_examples=STORIES, stateful_step_count=25, print_blob=True)
    )
