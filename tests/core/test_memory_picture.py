"""Memory that ran out, in one phrase."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.memory_picture import describe_memory
from finetune_trainer.messages import MemoryPicture
from makers import a_pod, an_attempt_job, training
from openapi import status_violations

pytestmark = pytest.mark.unit

GIB = 2**30
PICTURE: dict[str, Any] = {
    "phase": "dry step",
    "longestTokens": 4096,
    "deviceAllocatedBytes": 70 * GIB,
    "deviceReservedBytes": int(78.1 * GIB),
    "deviceTotalBytes": int(79.3 * GIB),
}


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (PICTURE, "out of memory in dry step at 4096 tokens: 78.1 of 79.3 GiB reserved"),
        (
            PICTURE | {"deviceReservedBytes": None},
            "out of memory in dry step at 4096 tokens: 70.0 of 79.3 GiB allocated",
        ),
        (
            {"phase": "step 17", "hostPeakBytes": 31 * GIB, "hostLimitBytes": 32 * GIB},
            "out of memory in step 17: 31.0 of 32.0 GiB of host memory used",
        ),
        ({"phase": "load", "hostPeakBytes": GIB}, "out of memory in load: 1.0 GiB of host memory used"),
        ({"phase": ""}, "out of memory"),
    ],
    ids=["device", "allocated-only", "host", "no-limit", "nothing-known"],
)
def test_phrase_says_where_how_long_and_how_much(picture: dict[str, Any], expected: str) -> None:
    """As much of it as is known; the device's numbers before the host's."""
    assert describe_memory(MemoryPicture.model_validate(picture)) == expected


COUNTS = st.none() | st.integers(0, 10**15 - 1)


@given(st.text(max_size=64), st.fixed_dictionaries(dict.fromkeys(set(MemoryPicture.model_fields) - {"phase"}, COUNTS)))
def test_phrase_is_short(phase: str, counts: dict[str, int | None]) -> None:
    """Whatever the pod says."""
    picture = MemoryPicture.model_validate({"phase": phase, **counts})
    assert len(describe_memory(picture)) < 200


def _end(**words: Any) -> str:
    story = training()
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().exited(77, message="CUDA out of memory", **words),))
    assert status_violations(story.status.to_dict()) == []
    return story.status.attempts[-1].message


def test_attempt_tells_where_the_memory_went() -> None:
    """The picture first, the exception after it."""
    assert _end(memory=PICTURE) == (
        "out of memory in dry step at 4096 tokens: 78.1 of 79.3 GiB reserved; CUDA out of memory"
    )
    assert _end() == "CUDA out of memory"


def test_picture_of_another_end_is_not_told() -> None:
    """A hang is none."""
    story = training()
    words = {"message": "broken", "memory": PICTURE}
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().exited(78, **words),))
    assert story.status.attempts[-1].message == "broken"
