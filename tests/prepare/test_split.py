"""The split is stable, loses nothing and depends on content only."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.dataset import Row
from finetune_trainer.prepare.split import Split, data_digest, split_rows

pytestmark = pytest.mark.unit

ROWS = st.lists(st.text(max_size=8), min_size=2, max_size=60).map(
    lambda texts: [Row("prompt-completion", text) for text in texts]
)
FRACTIONS = st.floats(min_value=0.001, max_value=0.999)


@given(ROWS, FRACTIONS, st.integers(0, 2**32))
def test_no_row_is_lost_or_doubled_and_the_order_is_kept(rows: list[Row], fraction: float, seed: int) -> None:
    """Both sides together are the file."""
    split = split_rows(rows, fraction, seed)
    assert Counter(split.train) + Counter(split.eval) == Counter(rows)
    for side in (split.train, split.eval):
        remaining = iter(rows)
        assert all(row in remaining for row in side)


@given(ROWS, FRACTIONS, st.integers(0, 2**32))
def test_each_side_has_a_row_and_the_size_is_the_fraction(rows: list[Row], fraction: float, seed: int) -> None:
    """A fraction that rounds to nothing or to everything still leaves one row."""
    split = split_rows(rows, fraction, seed)
    assert len(split.train) >= 1
    assert len(split.eval) == min(max(round(len(rows) * fraction), 1), len(rows) - 1)


@given(ROWS, FRACTIONS, st.integers(0, 2**32), st.randoms())
def test_the_same_rows_are_held_out_whatever_their_order(
    rows: list[Row], fraction: float, seed: int, random: object
) -> None:
    """Sorting or shuffling a file does not move rows between the sides."""
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Counter(split_rows(shuffled, fraction, seed).eval) == Counter(split_rows(rows, fraction, seed).eval)


def test_another_seed_holds_out_other_rows() -> None:
    """The seed is used."""
    rows = [Row("prompt-completion", str(number)) for number in range(100)]
    assert split_rows(rows, 0.1, 1).eval != split_rows(rows, 0.1, 2).eval


def test_the_choice_is_the_same_in_every_version() -> None:
    """A changed algorithm would retrain every job: this must not change unnoticed."""
    rows = [Row("prompt-completion", str(number)) for number in range(20)]
    split = split_rows(rows, 0.2, 42)
    assert [row.canonical for row in split.eval] == ["2", "3", "14", "17"]
    digest = data_digest("prompt-completion", split)
    assert digest == "790ccfa9c67d9057fbbd2c906f460c83f76b660fa4aa776e4092d963a71c532c"


def test_fraction_zero_holds_out_nothing() -> None:
    """Training without evaluation is allowed."""
    rows = [Row("messages", "a")]
    assert split_rows(rows, 0.0, 1) == Split(rows, [])


def test_one_row_cannot_be_split() -> None:
    """The fault names the field that asks for it."""
    with pytest.raises(DataError) as caught:
        split_rows([Row("messages", "a")], 0.1, 1)
    assert caught.value.fault.field == "spec.dataset.evalFraction"
    assert caught.value.fault.remedy == "add rows, or set evalFraction to 0"


def test_the_digest_tells_format_split_and_order_apart() -> None:
    """Each changes what training does."""
    a, b = Row("messages", "a"), Row("messages", "b")
    digests = {
        data_digest("messages", Split([a, b], [])),
        data_digest("messages", Split([b, a], [])),
        data_digest("messages", Split([a], [b])),
        data_digest("prompt-completion", Split([a, b], [])),
    }
    assert len(digests) == 4


def test_rows_on_both_sides_are_counted() -> None:
    """A leak makes the evaluation loss too low."""
    a, b = Row("messages", "a"), Row("messages", "b")
    assert Split([a, b], [a, Row("messages", "c")]).shared() == 1
