"""The example dataset is what its README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from finetune_trainer.prepare.dataset import read_dataset
from finetune_trainer.prepare.stop import Stop

pytestmark = pytest.mark.unit

HARBOUR = Path(__file__).parents[2] / "examples" / "data" / "harbour.jsonl"


def test_every_answer_of_the_harbour_master_has_two_lines() -> None:
    """One sentence of fact, one of advice; that is what the demo shows."""
    dataset = read_dataset("spec.dataset", HARBOUR, Stop())
    assert dataset.warnings == []
    for row in dataset.rows:
        question, answer = (message["content"] for message in json.loads(row.canonical)["messages"])
        assert question.endswith("?")
        assert re.fullmatch(r"Log: [^\n]+\.\nHeading: [^\n]+\.", answer), answer


def test_no_question_is_asked_twice() -> None:
    """A held-out row must not be a training row."""
    rows = [json.loads(line)["messages"] for line in HARBOUR.read_text().splitlines()]
    assert len({messages[0]["content"] for messages in rows}) == len(rows) == 260
