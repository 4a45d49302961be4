"""Packed rows: the same loss as one by one, and never a look at the row before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.data import Batch, Dataset, load_packs
from finetune_trainer.errors import DataError
from finetune_trainer.loss import token_loss_sum
from finetune_trainer.model import load_tokenizer
from finetune_trainer.prepare.packing import pack_rows
from finetune_trainer.rows import IGNORE
from trainer.tiny import ROWS, Assets

pytestmark = pytest.mark.trainer

LIMIT = 100
PACKS = [[0, 4, 9], [1], [2, 3], [5, 6], [7, 8]]
"""Of the shared ten rows; no two packs are equally long in every batch."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(assets: Assets) -> Any:
    return load_tokenizer(assets.model)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, assets: Assets) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        assets.model, dtype=torch.float32, attn_implementation=request.param
    ).train()
    # The weights of the assets are so small that attention hardly matters: these make it matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def rows_file(assets: Assets) -> Path:
    return Path(assets.train_uri.removeprefix("file://"))


def packed(assets: Assets, tokenizer: Any, packs: list[list[int]] = PACKS, limit: int = LIMIT) -> Dataset:
    return Dataset(rows_file(assets), tokenizer, limit, packs)


def loss_of(model: Any, batch: Batch) -> float:
    return float(token_loss_sum(model, batch, CPU).detach())


def loss_one_by_one(model: Any, assets: Assets, tokenizer: Any, rows: list[int]) -> float:
    single = Dataset(rows_file(assets), tokenizer, LIMIT)
    return sum(loss_of(model, single.batch([row])) for row in rows)


@pytest.mark.parametrize(
    "items",
    [[0], [1], [0, 1, 2], [3, 4, None], [0, 1, 2, 3, 4]],
    ids=["one-pack", "one-row", "different-lengths", "weight-zero", "all"],
)
def test_the_packed_loss_is_that_of_the_rows_one_by_one(
    model: Any, assets: Assets, tokenizer: Any, items: list[int | None]
) -> None:
    """To 1e-4 of a sum over hundreds of tokens, in fp32."""
    rows = [row for item in items if item is not None for row in PACKS[item]]
    batch = packed(assets, tokenizer).batch(items)

    expected = loss_one_by_one(model, assets, tokenizer, rows)
    assert loss_of(model, batch) == pytest.approx(expected, rel=0, abs=1e-4)


def test_gradients_are_those_of_the_rows_one_by_one(model: Any, assets: Assets, tokenizer: Any) -> None:
    """Sequences of one batch and rows of one sequence add up alike."""
    single = Dataset(rows_file(assets), tokenizer, LIMIT).batch(list(range(ROWS)))
    gradients = []
    for batch in (single, packed(assets, tokenizer).batch(list(range(len(PACKS))))):
        model.zero_grad()
        token_loss_sum(model, batch, CPU).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


def test_with_a_mask_of_ones_rows_would_attend_to_each_other(model: Any, assets: Assets, tokenizer: Any) -> None:
    """The trap: no error, another loss. Should this test fail, a mask has become harmless."""
    batch = packed(assets, tokenizer).batch([0, 2])
    trapped = dataclasses.replace(batch, attention_mask=torch.ones_like(batch.input_ids))

    assert batch.attention_mask is None
    assert abs(loss_of(model, trapped) - loss_of(model, batch)) > 1e-3


def test_what_fills_a_sequence_up_changes_nothing(model: Any, assets: Assets, tokenizer: Any) -> None:
    """It is a row of its own, without labels, that nobody attends to."""
    batch = packed(assets, tokenizer).batch([1, 0])
    length = len(packed(assets, tokenizer).row(1).ids)
    assert length < batch.input_ids.shape[1]
    other = batch.input_ids.clone()
    other[0, length:] = 7

    assert loss_of(model, dataclasses.replace(batch, input_ids=other)) == loss_of(model, batch)


def test_positions_start_again_with_every_row(assets: Assets, tokenizer: Any) -> None:
    """And with the filler; the first token of a row is nobody's prediction."""
    data = packed(assets, tokenizer)
    batch = data.batch([1, 2, None])
    first, second, third = (len(data.row(row).ids) for row in (1, 2, 3))
    width = second + third

    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [
        [*range(first), *range(width - first)],
        [*range(second), *range(third)],
        [*range(width)],
    ]
    assert batch.labels[1, second] == IGNORE
    assert (batch.labels[0, first:] == IGNORE).all()
    assert (batch.labels[2] == IGNORE).all()
    assert batch.tokens == first + second + third
    single = Dataset(rows_file(assets), tokenizer, LIMIT)
    assert batch.label_tokens == single.batch([1, 2, 3]).label_tokens


def test_a_row_that_begins_with_its_answer_loses_that_token_like_any_other(tmp_path: Path, tokenizer: Any) -> None:
    """Without a prompt the first token of the answer has nothing before it, packed or not."""
    row = json.dumps({"prompt": "", "completion": "abc"})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n")
    single = Dataset(tmp_path / "rows.jsonl", tokenizer, 50).batch([0, 1])
    batch = Dataset(tmp_path / "rows.jsonl", tokenizer, 50, [[0, 1]]).batch([0])

    assert batch.label_tokens == single.label_tokens == 2 * 3


def test_items_are_packs(assets: Assets, tokenizer: Any) -> None:
    """The sampler and the batch arithmetic count them."""
    data = packed(assets, tokenizer)
    assert (len(data), data.row_count) == (len(PACKS), ROWS)
    single = Dataset(rows_file(assets), tokenizer, LIMIT)
    assert (len(single), single.row_count) == (ROWS, ROWS)


def test_long_rows_are_cut_as_prepare_counted_them(assets: Assets, tokenizer: Any) -> None:
    """Each fills a sequence of its own."""
    lengths = [len(packed(assets, tokenizer).row(row).ids) for row in range(ROWS)]
    limit = sorted(lengths)[ROWS // 2]
    packs = pack_rows(lengths, limit)
    data = packed(assets, tokenizer, packs, limit)

    batch = data.batch(list(range(len(packs))))

    assert batch.input_ids.shape[1] <= limit
    assert batch.tokens == sum(min(length, limit) for length in lengths)


def test_packs_made_for_another_limit_are_refused(assets: Assets, tokenizer: Any) -> None:
    """Else the memory plan would be wrong without a word."""
    with pytest.raises(DataError, match=r"pack 0 has \d+ tokens, more than maxLength"):
        packed(assets, tokenizer, limit=40).batch([0])


# --- the file ---


def write_packs(folder: Path, text: str, name: str = "") -> Path:
    path = folder / (name or f"packs-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json")
    path.write_text(text)
    return path


def test_packs_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Row numbers from 0."""
    assert load_packs(write_packs(tmp_path, "[[0,2],[1]]"), rows=3) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("[[0,2],[1]", "cannot be read", id="cut-off"),
        pytest.param("{}", "must be a list of lists", id="no-list"),
        pytest.param("[[0,1],[]]", "must be a list of lists", id="empty-pack"),
        pytest.param("[[0,1],2]", "must be a list of lists", id="no-pack"),
        pytest.param("[[0,1],[3]]", "exactly once", id="no-such-row"),
        pytest.param("[[0,1],[-1]]", "exactly once", id="negative"),
        pytest.param("[[0,1],[1]]", "exactly once", id="twice"),
        pytest.param("[[0,1]]", "exactly once", id="one-missing"),
        pytest.param('[[0,1],["2"]]', "exactly once", id="no-number"),
        pytest.param("[[0,1],[2.0]]", "exactly once", id="a-fraction"),
        pytest.param("[[0,true],[2]]", "exactly once", id="a-truth"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """It lies in a cache that others can write."""
    with pytest.raises(DataError, match=problem):
        load_packs(write_packs(tmp_path, text), rows=3)


def test_a_file_that_was_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    """The name says the content."""
    with pytest.raises(DataError, match="other content than its name says"):
        load_packs(write_packs(tmp_path, "[[0],[1]]", "packs-0123456789ab.json"), rows=2)
    with pytest.raises(DataError, match="cannot be read"):
        load_packs(tmp_path / "packs-nothing.json", rows=2)
