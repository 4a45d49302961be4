"""A stored status that does not parse stops nothing, and loses no number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.stored_status import read_status
from makers import a_pod, a_result, an_attempt_job, at, last_words, training

pytestmark = pytest.mark.unit


def _stored() -> dict[str, Any]:
    story = training()
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod().exited(75),))
    story.sees(at(21))
    words = last_words(0, result=a_result())
    story.sees(at(40), jobs=(an_attempt_job(2),), pods=(a_pod(attempt=2).exited(0, words=words),))
    return story.status.to_dict()


STORED = _stored()


def test_a_valid_status_is_read_as_it_is() -> None:
    """Nothing is left out."""
    status, left_out = read_status(STORED)
    assert (status.to_dict(), left_out) == (STORED, "")


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        ({"phase": "Dreaming"}, "phase"),
        ({"progress": {"step": "many"}}, "progress.step"),
        ({"result": {"uri": 1, "digest": "d"}}, "result.uri, result"),
        ({"totals": {"attempts": "two", "failures": 1}}, "totals.attempts"),
        ({"totals": "none"}, "totals"),
        ({"conditions": [{"type": "Complete"}, *STORED["conditions"]]}, "conditions.0"),
        ({"attempts": [{"number": "one"}, {"number": "x"}, *STORED["attempts"]]}, "attempts.0, attempts.1"),
    ],
    ids=["word", "field", "incomplete", "number", "no-totals", "condition", "attempts"],
)
def test_as_little_as_possible_is_left_out(change: dict[str, Any], left_out: str) -> None:
    """The run, its end and the attempt's number stay."""
    status, named = read_status({**STORED, **change})
    assert named == left_out
    assert status.totals.attempts == 2
    assert status.run is not None
    assert {condition.type for condition in status.conditions if condition.status == "True"} == {"Accepted", "Complete"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["number", "type", "x"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(STORED)), values))
def test_no_status_stops_a_pass(change: dict[str, Any]) -> None:
    """Whatever it says."""
    read_status({**STORED, **change})
