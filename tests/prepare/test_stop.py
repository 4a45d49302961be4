"""SIGTERM is noticed in loops at once, and interrupts a download from within."""

from __future__ import annotations

import os
import signal
import time

import pytest

from finetune_trainer.errors import PreemptedError
from finetune_trainer.prepare.stop import Stop

pytestmark = pytest.mark.unit


def test_a_signal_is_noticed_at_the_next_check() -> None:
    """Between checks nothing is torn apart."""
    stop = Stop()
    with stop.handling_sigterm():
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(PreemptedError):
            stop.check()


def test_a_signal_ends_a_call_that_would_last() -> None:
    """A download of gigabytes checks nothing."""
    stop = Stop()

    def download() -> None:
        with stop.interrupting():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    started = time.monotonic()
    with stop.handling_sigterm(), pytest.raises(PreemptedError):
        download()
    assert time.monotonic() - started < 5


def test_nothing_long_begins_after_a_signal() -> None:
    """The grace period is short."""
    stop = Stop()
    with stop.handling_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(PreemptedError), stop.interrupting():
            pytest.fail("the block must not be entered")
