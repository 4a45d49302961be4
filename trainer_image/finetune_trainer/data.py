"""Rows of JSON lines to tensors: what the model reads, and on which tokens it is judged (see ``rows.py``).

Rows are tokenized when their batch comes: the first step does not wait for the whole dataset, and no
collective times out meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.errors import DataError
from finetune_trainer.rows import IGNORE, Rendering, Tokens, label_segments, split_row


@dataclass(frozen=True)
class Batch:
    """One micro-batch, padded on the right to its longest row."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    tokens: int
    """Tokens of real rows, without padding."""

    @property
    def label_tokens(self) -> int:
        """Tokens the model is judged on; the first of a row has no prediction."""
        return int((self.labels[:, 1:] != IGNORE).sum())


class Dataset:
    """The rows of one JSON lines file, in memory as text."""

    def __init__(self, path: Path, tokenizer: Any, max_length: int) -> None:
        """Read the file.

        Raises:
            DataError: it is missing or empty.
        """
        try:
            self._lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except OSError as error:
            raise _fault(str(path), f"cannot be read: {error}") from error
        if not self._lines:
            raise _fault(str(path), "must have at least one row")
        self._tokenizer = tokenizer
        self._rendering = load_rendering(tokenizer)
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def is_conversational(self) -> bool:
        """Whether rows are messages, so that the chat template applies (to evaluation prompts as well)."""
        row = self._parse(0)
        return "messages" in row or isinstance(row.get("prompt"), list)

    def row(self, index: int) -> Tokens:
        """Tokens and labels of one row, cut to the maximum length.

        Raises:
            DataError: the row has neither messages nor prompt and completion, or the template refuses it.
        """
        try:
            segments = list(split_row(self._parse(index), self._rendering))
        except DataError:
            raise
        except Exception as error:  # a chat template raises whatever its author chose
            raise _fault(f"row {index + 1}", f"cannot be rendered: {error}") from error
        parts = [self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text, _ in segments]
        return label_segments(segments, parts, self._rendering.eos_token_id).cut(self._max_length)

    def batch(self, rows: list[int | None]) -> Batch:
        """A micro-batch; None is a row of weight zero."""
        filler = pad_token_id(self._tokenizer)
        tokens = [Tokens([], []) if row is None else self.row(row) for row in rows]
        return collate(tokens, filler)

    def longest_batch(self, rows: int, longest_row_tokens: int | None) -> Batch:
        """A micro-batch of the largest size that can come: every row at the maximum length, every token judged.

        ``longest_row_tokens``: of all rows, where that is known.
        """
        length = max(2, min(longest_row_tokens or self._max_length, self._max_length))
        filler = pad_token_id(self._tokenizer)
        return collate([Tokens([filler] * length, [filler] * length)] * rows, filler)

    def _parse(self, index: int) -> dict[str, Any]:
        try:
            row = json.loads(self._lines[index])
        except ValueError as error:
            raise _fault(f"row {index + 1}", f"is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _fault(f"row {index + 1}", "must be a JSON object")
        return row


def load_rendering(tokenizer: Any) -> Rendering:
    """How rows read for a tokenizer of transformers."""

    def chat(messages: list[dict[str, Any]], generate: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    adds_bos = tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]
    return Rendering(chat, bos=tokenizer.bos_token if adds_bos else "", eos_token_id=tokenizer.eos_token_id)


def render_prompt(prompt: str, tokenizer: Any, conversational: bool) -> str:
    """An evaluation prompt in the form of the training rows."""
    rendering = load_rendering(tokenizer)
    if conversational:
        return rendering.chat([{"role": "user", "content": prompt}], True)
    return rendering.bos + prompt


def collate(rows: list[Tokens], filler: int) -> Batch:
    """Pad on the right to the longest row, and to two tokens at least.

    A row of weight zero sees its filler: attention over nothing at all would be NaN.
    """
    width = max([2, *(len(row.ids) for row in rows)])
    return Batch(
        input_ids=torch.tensor([row.ids + [filler] * (width - len(row.ids)) for row in rows]),
        attention_mask=torch.tensor([_mask(len(row.ids), width) for row in rows]),
        labels=torch.tensor([row.labels + [IGNORE] * (width - len(row.labels)) for row in rows]),
        tokens=sum(len(row.ids) for row in rows),
    )


def _mask(length: int, width: int) -> list[int]:
    return [1] * length + [0] * (width - length) if length else [1] * width


def pad_token_id(tokenizer: Any) -> int:
    """What fills a batch up: any token does, for it is masked."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def _fault(value: str, message: str) -> DataError:
    return DataError("spec.dataset", value, message, "correct the dataset; the prepare stage names line and field")
