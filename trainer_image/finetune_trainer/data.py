"""Rows of JSON lines to tensors: what the model reads, and on which tokens it is judged (see ``rows.py``).

Rows are tokenized when their batch comes: the first step does not wait for the whole dataset, and no
collective times out meanwhile.

Packed rows lie behind one another in one sequence, and only their position ids, which start again with each row, tell
the model where one ends. transformers looks at them only when it gets **no attention mask and no cache**; with an
all-ones mask rows attend to each other, without an error and with a loss that is off by a percent. That holds for
sdpa and eager attention; flash attention looks only when the batch is a single sequence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.errors import DataError
from finetune_trainer.layout import packs_name
from finetune_trainer.rows import IGNORE, Rendering, Tokens, label_segments, split_row


@dataclass(frozen=True)
class Batch:
    """One micro-batch, padded on the right to its longest sequence. What is None is not given to the model."""

    input_ids: Tensor
    attention_mask: Tensor | None
    """None for packed rows."""
    labels: Tensor
    position_ids: Tensor | None
    """None for rows that are not packed: they follow from the mask."""
    tokens: int
    """Tokens of real rows, without padding."""

    @property
    def label_tokens(self) -> int:
        """Tokens the model is judged on; the first of a row has no prediction."""
        return int((self.labels[:, 1:] != IGNORE).sum())


class Dataset:
    """The rows of one JSON lines file, in memory as text; an item of a batch is a row or a pack of rows."""

    def __init__(
        self, path: Path, tokenizer: Any, max_length: int, packs: Sequence[Sequence[int]] | None = None
    ) -> None:
        """Read the file; ``packs`` are what :func:`load_packs` returns, None lays every row into its own sequence.

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
        self._packs = packs

    def __len__(self) -> int:
        """Items: packs where rows are packed, else rows."""
        return len(self._lines) if self._packs is None else len(self._packs)

    @property
    def row_count(self) -> int:
        """Rows of the file."""
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

    def batch(self, items: Sequence[int | None]) -> Batch:
        """A micro-batch; None is an item of weight zero.

        Raises:
            DataError: as :meth:`row`, or a pack is longer than the maximum length.
        """
        filler = pad_token_id(self._tokenizer)
        if self._packs is None:
            return collate([Tokens([], []) if item is None else self.row(item) for item in items], filler)
        return collate_packs([[] if item is None else self._pack(item) for item in items], filler)

    def _pack(self, item: int) -> list[Tokens]:
        assert self._packs is not None
        rows = [self.row(row) for row in self._packs[item]]
        if (length := sum(len(row.ids) for row in rows)) > self._max_length:
            raise _fault(f"pack {item}", f"pack {item} has {length} tokens, more than maxLength ({self._max_length})")
        return rows

    def longest_batch(self, rows: int, longest_row_tokens: int | None) -> Batch:
        """A micro-batch of the largest size that can come: every sequence at its longest, every token judged.

        ``longest_row_tokens``: of all rows, where that is known.
        """
        filler = pad_token_id(self._tokenizer)
        if self._packs is not None:
            return collate_packs([[Tokens([filler] * self._max_length, [filler] * self._max_length)]] * rows, filler)
        length = max(2, min(longest_row_tokens or self._max_length, self._max_length))
        return collate([Tokens([filler] * length, [filler] * length)] * rows, filler)

    def _parse(self, index: int) -> dict[str, Any]:
        try:
            row = json.loads(self._lines[index])
        except ValueError as error:
            raise _fault(f"row {index + 1}", f"is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _fault(f"row {index + 1}", "must be a JSON object")
        return row


def load_packs(path: Path, rows: int) -> list[list[int]]:
    """Read which of ``rows`` rows share a sequence, as prepare wrote it; the file's name says its content.

    Raises:
        DataError: it cannot be read, has been changed, or does not name every row exactly once.
    """
    try:
        text = path.read_bytes()
        packs = json.loads(text)
    except (OSError, ValueError) as error:
        raise _fault(str(path), f"cannot be read: {error}") from error
    if path.name != packs_name(hashlib.sha256(text).hexdigest()):
        raise _fault(str(path), "has other content than its name says")
    if not (isinstance(packs, list) and all(isinstance(pack, list) and pack for pack in packs)):
        raise _fault(str(path), "must be a list of lists of row numbers")
    named = [row for pack in packs for row in pack]
    if not all(type(row) is int for row in named) or sorted(named) != list(range(rows)):
        raise _fault(str(path), f"must name every row from 0 to {rows - 1} exactly once")
    return packs


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
        position_ids=None,
        tokens=sum(len(row.ids) for row in rows),
    )


def collate_packs(packs: list[list[Tokens]], filler: int) -> Batch:
    """Lay the rows of each pack behind one another; what fills a sequence up is a row of its own that nobody reads.

    The first token of a row has no label: what comes before it is another row.
    """
    width = max([2, *(sum(len(row.ids) for row in pack) for pack in packs)])
    sequences = [_lay(pack, width, filler) for pack in packs]
    ids, labels, positions = zip(*sequences, strict=True)
    return Batch(
        input_ids=torch.tensor(ids),
        attention_mask=None,
        labels=torch.tensor(labels),
        position_ids=torch.tensor(positions),
        tokens=sum(len(row.ids) for pack in packs for row in pack),
    )


def _lay(pack: list[Tokens], width: int, filler: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, labels and positions of one sequence."""
    left = width - sum(len(row.ids) for row in pack)
    rows = [*pack, Tokens([filler] * left, [IGNORE] * left)]
    return (
        [token for row in rows for token in row.ids],
        [label for row in rows for label in [IGNORE, *row.labels[1:]][: len(row.labels)]],
        [position for row in rows for position in range(len(row.ids))],
    )


def _mask(length: int, width: int) -> list[int]:
    return [1] * length + [0] * (width - length) if length else [1] * width


def pad_token_id(tokenizer: Any) -> int:
    """What fills a batch up: any token does, for it is masked."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def _fault(value: str, message: str) -> DataError:
    return DataError("spec.dataset", value, message, "correct the dataset; the prepare stage names line and field")
