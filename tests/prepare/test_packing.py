"""Which rows share a sequence, and what prepare leaves of it for the trainer."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import DatasetFacts, PrepareTermination
from finetune_trainer.prepare.packing import pack_rows
from finetune_trainer.prepare.stage import run_prepare
from prepare.makers import Workplace, chat, write_rows

pytestmark = pytest.mark.unit


@st.composite
def a_dataset(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of rows and the limit; some rows are longer than it, some empty."""
    limit = draw(st.integers(8, 200))
    return draw(st.lists(st.integers(0, 2 * limit), max_size=80)), limit


@given(a_dataset())
def test_every_row_is_in_exactly_one_pack_that_is_not_too_long(data: tuple[list[int], int]) -> None:
    """A row beyond the limit fills a pack, for it will be cut there."""
    lengths, limit = data
    packs = pack_rows(lengths, limit)

    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(min(lengths[row], limit) for row in pack) <= limit for pack in packs)
    assert all(packs)


@given(a_dataset())
def test_packs_are_few_and_always_the_same(data: tuple[list[int], int]) -> None:
    """No two packs would fit into one, and first-fit decreasing stays within 11/9 of the fewest, plus 6/9."""
    lengths, limit = data
    packs = pack_rows(lengths, limit)
    sizes = sorted(sum(min(lengths[row], limit) for row in pack) for pack in packs)

    assert packs == pack_rows(list(lengths), limit)
    assert packs == sorted(sorted(pack) for pack in packs)
    assert len(packs) < 2 or sizes[0] + sizes[1] > limit
    needed = math.ceil(sum(sizes) / limit)
    assert needed <= len(packs) <= len(lengths)
    assert len(packs) <= naive_first_fit_decreasing(lengths, limit)


def naive_first_fit_decreasing(lengths: list[int], limit: int) -> int:
    """The textbook's version, in quadratic time."""
    room: list[int] = []
    for size in sorted((min(length, limit) for length in lengths), reverse=True):
        at = next((at for at, left in enumerate(room) if left >= size), None)
        if at is None:
            room.append(limit - size)
        else:
            room[at] -= size
    return len(room)


def test_packing_a_large_dataset_takes_no_longer_than_tokenizing_it() -> None:
    """Trying each pack for each row would take minutes here."""
    assert len(pack_rows([300 + at % 700 for at in range(20_000)], 2048)) < 7_000


# --- the stage ---


def run(place: Workplace, **changes: Any) -> tuple[DatasetFacts, list[str]]:
    code = run_prepare(place.config(**{"packing": True, **changes}), place.termination, place.mount_root)
    termination = PrepareTermination.model_validate_json(place.termination.read_text())
    assert code == ExitCode.OK, termination.message
    assert termination.dataset is not None
    return termination.dataset, termination.warnings


def read_packs(facts: DatasetFacts) -> list[list[int]]:
    assert facts.packs_uri is not None
    file = Path(facts.packs_uri.removeprefix("file://"))
    assert file.name == f"packs-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}.json"
    assert file.parent == Path(facts.train_uri.removeprefix("file://")).parent
    assert file.stat().st_mode & 0o777 == 0o644
    packs: list[list[int]] = json.loads(file.read_text())
    return packs


def test_packs_name_the_training_rows_by_their_place_in_the_staged_file(place: Workplace) -> None:
    """Eighteen rows of ten tokens, six to a sequence of 64; the held-out rows stay alone."""
    facts, warnings = run(place)
    packs = read_packs(facts)

    assert warnings == []
    assert facts.train_packs == len(packs) == 3
    assert sorted(row for pack in packs for row in pack) == list(range(facts.train_rows))


def test_the_lengths_are_those_of_the_training_rows(place: Workplace) -> None:
    """Where held-out rows were taken out, line numbers and row numbers differ."""
    write_rows(place.dataset, [chat("word " * (number % 7) + str(number)) for number in range(40)])
    facts, _ = run(place, max_length=16, eval_fraction=0.25)
    rows = Path(facts.train_uri.removeprefix("file://")).read_text().splitlines()
    lengths = [len(json.loads(row)["messages"][0]["content"].split()) + 6 for row in rows]

    assert sum(lengths) == facts.train_tokens
    assert read_packs(facts) == pack_rows(lengths, 16)


def test_without_packing_there_are_no_packs(place: Workplace) -> None:
    """One row per sequence."""
    facts, _ = run(place, packing=False)
    assert (facts.packs_uri, facts.train_packs) == (None, None)
    assert not list(place.cache.rglob("packs-*"))


def test_another_limit_makes_another_file_beside_the_first(place: Workplace) -> None:
    """Jobs with the same data share its folder; running again changes nothing."""
    first, _ = run(place)
    second, _ = run(place, max_length=32)
    again, _ = run(place)

    assert first == again
    assert first.packs_uri != second.packs_uri
    assert second.train_packs == 6
    assert len(list(place.cache.rglob("packs-*"))) == 2


def test_packing_that_saves_little_is_said(place: Workplace) -> None:
    """Rows of ten tokens and sequences of fifteen."""
    facts, warnings = run(place, max_length=15)
    assert facts.train_packs == 18
    assert warnings == [
        "packing makes 18 sequences of 18 rows, which saves little: raise maxLength (15 tokens), or leave packing out"
    ]
