"""Conditions behave as Kubernetes' own."""

from __future__ import annotations

import pytest

from finetune_operator.api.conditions import Condition, find_condition, is_true, set_condition
from makers import at

pytestmark = pytest.mark.unit


def _condition(status: str, *, type_: str = "Running", reason: str = "Training", after: float = 0) -> Condition:
    return Condition.model_validate(
        {"type": type_, "status": status, "reason": reason, "lastTransitionTime": at(after).isoformat()}
    )


def test_transition_time_moves_with_the_status() -> None:
    """From False to True something happened."""
    (found,) = set_condition([_condition("False")], _condition("True", after=60))
    assert found.last_transition_time == at(60)


def test_transition_time_stays_when_only_the_reason_changes() -> None:
    """``kubectl wait`` and people read it as "since when"."""
    (found,) = set_condition([_condition("True")], _condition("True", reason="Resuming", after=60))
    assert (found.last_transition_time, found.reason) == (at(0), "Resuming")


def test_conditions_keep_their_order() -> None:
    """A status that changes only in order would be written again and again."""
    conditions = [_condition("True", type_="Accepted"), _condition("False", type_="Running")]
    changed = set_condition(conditions, _condition("False", type_="Accepted", after=1))
    assert [item.type for item in changed] == ["Accepted", "Running"]


def test_a_condition_that_was_never_set_is_not_true() -> None:
    """Absent is not True, and not an error."""
    assert not is_true([], "Complete")
    assert find_condition([], "Complete") is None
