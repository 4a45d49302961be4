"""Rows to tokens and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data import Dataset, render_prompt
from finetune_trainer.errors import DataError
from finetune_trainer.model import load_tokenizer
from finetune_trainer.prepare.dataset import read_dataset
from finetune_trainer.prepare.stop import Stop
from finetune_trainer.prepare.tokens import RowCounter
from finetune_trainer.rows import IGNORE
from trainer.tiny import Assets, write_rows

pytestmark = pytest.mark.unit

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


@pytest.fixture(scope="module")
def tokenizer(assets: Assets) -> Any:
    return load_tokenizer(assets.model)


def judged_text(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    """The text that the model is judged on."""
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    return str(tokenizer.decode([label for label in labels if label != IGNORE]))


def a_dataset(folder: Path, tokenizer: Any, *rows: dict[str, Any], max_length: int = 200) -> Dataset:
    write_rows(folder / "rows.jsonl", list(rows))
    return Dataset(folder / "rows.jsonl", tokenizer, max_length)


@pytest.mark.parametrize(
    ("row", "whole", "judged"),
    [
        pytest.param(
            {"messages": TURNS},
            "<|system|>Be brief.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>Hello<|end|>\n"
            "<|user|>Bye<|end|>\n<|assistant|>See you<|end|>\n",
            "Hello<|end|>\nSee you<|end|>\n",
            id="every-answer-of-a-conversation",
        ),
        pytest.param(
            {"prompt": TURNS[:3] + TURNS[3:4], "completion": TURNS[4:]},
            "<|system|>Be brief.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>Hello<|end|>\n"
            "<|user|>Bye<|end|>\n<|assistant|>See you<|end|>\n",
            "See you<|end|>\n",
            id="only-the-completion-of-a-conversation",
        ),
        pytest.param({"prompt": "2 + 2 = ", "completion": "4"}, "2 + 2 = 4<|end|>", "4<|end|>", id="plain-text"),
    ],
)
def test_only_completions_are_judged_and_they_end(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], whole: str, judged: str
) -> None:
    """Labels are -100 on everything that the user or the template wrote; the end of the turn is inside."""
    tokens = a_dataset(tmp_path, tokenizer, row).row(0)

    assert tokenizer.decode(tokens.ids) == whole
    assert judged_text(tokenizer, tokens.ids, tokens.labels) == judged


def test_a_template_that_rewrites_history_judges_the_last_answer(tmp_path: Path, tokenizer: Any) -> None:
    """Some templates drop earlier reasoning: prefixes of the conversation are no prefixes of its text."""
    original = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages | length }}" + original
    try:
        tokens = a_dataset(tmp_path, tokenizer, {"messages": TURNS}).row(0)
    finally:
        tokenizer.chat_template = original

    assert judged_text(tokenizer, tokens.ids, tokens.labels) == "See you<|end|>\n"


def test_a_long_row_is_cut(tmp_path: Path, tokenizer: Any) -> None:
    """The beginning is kept."""
    tokens = a_dataset(tmp_path, tokenizer, {"prompt": "abc", "completion": "def"}, max_length=5).row(0)

    assert tokenizer.decode(tokens.ids) == "abcde"


def test_a_batch_is_padded_and_rows_of_weight_zero_do_not_count(tmp_path: Path, tokenizer: Any) -> None:
    """The filler is masked and unlabelled."""
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "aaa", "completion": "bbb"}]
    batch = a_dataset(tmp_path, tokenizer, *rows).batch([0, 1, None])

    assert batch.input_ids.shape == (3, 7)
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [3, 7, 7]
    assert batch.position_ids is None
    assert batch.label_tokens == 2 + 4
    assert batch.tokens == 3 + 7
    assert (batch.labels[2] == IGNORE).all()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("{oops}", "is not JSON", id="not-json"),
        pytest.param("[]", "must be a JSON object", id="not-an-object"),
        pytest.param('{"text": "x"}', "must have messages", id="unknown-format"),
        pytest.param('{"messages": [{"content": "x"}]}', "cannot be rendered", id="no-role"),
    ],
)
def test_a_bad_row_is_the_users_fault(tmp_path: Path, tokenizer: Any, text: str, problem: str) -> None:
    """Prepare finds these first; a row that slips through still ends with 65."""
    (tmp_path / "rows.jsonl").write_text(text)

    with pytest.raises(DataError, match=problem):
        Dataset(tmp_path / "rows.jsonl", tokenizer, 100).row(0)


def test_evaluation_prompts_look_like_the_training_rows(tokenizer: Any) -> None:
    """With the chat template only where the rows have one."""
    assert render_prompt("Hi", tokenizer, conversational=True) == "<|user|>Hi<|end|>\n<|assistant|>"
    assert render_prompt("Hi", tokenizer, conversational=False) == "Hi"


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": TURNS}, {"messages": TURNS[1:3]}],
        [{"prompt": "2 + 2 = ", "completion": "4"}, {"prompt": "a<|end|>", "completion": "b<|end|>"}],
    ],
    ids=["messages", "plain-text"],
)
@pytest.mark.parametrize("max_length", [200, 60, 11])
def test_prepare_counts_what_is_cut_here(
    assets: Assets, tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], max_length: int
) -> None:
    """Its warnings are about these very tokens."""
    uncut, cut = (a_dataset(tmp_path, tokenizer, *rows, max_length=length) for length in (10_000, max_length))
    checked = read_dataset("spec.dataset", tmp_path / "rows.jsonl", Stop())
    counted = RowCounter(assets.model, checked.format, max_length).measure("spec.dataset", checked.rows, Stop())

    assert [(counted[line].total, counted[line].labels) for line in (1, 2)] == [
        (len(uncut.row(at).ids), cut.batch([at]).label_tokens) for at in (0, 1)
    ]
