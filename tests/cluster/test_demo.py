"""When the demo says that it failed."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.demo import what_went_wrong

pytestmark = pytest.mark.unit


def a_demo(*, complete: bool = True, attempts: int = 2, after: float = 1.5) -> dict[str, Any]:
    """Its FineTuneJob at the end."""
    return {
        "status": {
            "message": "out of patience",
            "conditions": [{"type": "Complete", "status": str(complete)}],
            "totals": {"attempts": attempts},
            "result": {"metrics": {"baseEvalLoss": 4.0, "evalLoss": after}},
        }
    }


def test_a_run_that_resumed_and_learnt_is_right() -> None:
    """Nothing is said."""
    assert what_went_wrong(a_demo()) == ""


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (a_demo(complete=False), "not Complete: out of patience"),
        (a_demo(attempts=1), "took 1 attempts instead of 2"),
        (a_demo(after=4.0), "did not lower the evaluation loss: 4.000 before, 4.000 after"),
        (a_demo(after=float("nan")), "did not lower the evaluation loss"),
    ],
    ids=["failed", "never-interrupted", "learnt-nothing", "no-loss"],
)
def test_what_went_wrong_is_a_sentence(job: dict[str, Any], words: str) -> None:
    """For whoever watches the terminal."""
    assert words in what_went_wrong(job)
