"""Rows of JSON lines to tensors: what the model reads, and on which tokens it is judged.

Only completions count: labels are -100 on the prompt. A row is cut into segments (prompt, answer, prompt,
answer …) that are tokenized one by one, so the tokens of a prompt are those that generation will see, and no
token straddles the border. Every answer ends with the tokenizer's end-of-turn or EOS inside the loss, or the
model never learns to stop. Rows are tokenized when their batch comes: the first step does not wait for the
whole dataset, and no collective times out meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.errors import DataError

IGNORE = -100
"""Label of a token that does not count, as in transformers."""

Segment = tuple[str, bool]
"""Text, and whether the model is judged on it."""


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


@dataclass(frozen=True)
class Tokens:
    """One row."""

    ids: list[int]
    labels: list[int]


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
            segments = list(split_row(self._parse(index), self._tokenizer))
        except DataError:
            raise
        except Exception as error:  # a chat template raises whatever its author chose
            raise _fault(f"row {index + 1}", f"cannot be rendered: {error}") from error
        return encode(segments, self._tokenizer, self._max_length)

    def batch(self, rows: list[int | None]) -> Batch:
        """A micro-batch; None is a row of weight zero."""
        filler = pad_token_id(self._tokenizer)
        tokens = [Tokens([], []) if row is None else self.row(row) for row in rows]
        return collate(tokens, filler)

    def _parse(self, index: int) -> dict[str, Any]:
        try:
            row = json.loads(self._lines[index])
        except ValueError as error:
            raise _fault(f"row {index + 1}", f"is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise _fault(f"row {index + 1}", "must be a JSON object")
        return row


def split_row(row: dict[str, Any], tokenizer: Any) -> Iterator[Segment]:
    """The segments of a row: messages, a conversational prompt and completion, or plain text."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(row.get("messages"), list):
        yield from _split_messages(row["messages"], 0, tokenizer)
    elif isinstance(prompt, list) and isinstance(completion, list):
        yield from _split_messages(prompt + completion, len(prompt), tokenizer)
    elif isinstance(prompt, str) and isinstance(completion, str):
        yield _with_bos(prompt, tokenizer), False
        yield completion, True
    else:
        raise _fault(json.dumps(row)[:80], "must have messages, or prompt and completion")


def _split_messages(messages: list[dict[str, Any]], first_judged: int, tokenizer: Any) -> Iterator[Segment]:
    """Alternate what the user sees and what the assistant wrote.

    Rendering prefixes needs no generation markers in the template. A template that rewrites earlier turns
    (some drop old reasoning) breaks the prefix property; then only the last answer is judged.
    """
    full = _render(messages, tokenizer)
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at >= first_judged]
    borders = [_borders(messages, at, tokenizer) for at in answers]
    if not all(full.startswith(end) and end.startswith(start) for start, end in borders):
        last = full.rindex(str(messages[answers[-1]]["content"]).strip())
        yield full[:last], False
        yield full[last:], True
        return
    done = 0
    for start, end in borders:
        yield full[done : len(start)], False
        yield full[len(start) : len(end)], True
        done = len(end)
    yield full[done:], False


def _borders(messages: list[dict[str, Any]], at: int, tokenizer: Any) -> tuple[str, str]:
    return _render(messages[:at], tokenizer, generate=True), _render(messages[: at + 1], tokenizer)


def _render(messages: list[dict[str, Any]], tokenizer: Any, generate: bool = False) -> str:
    if not messages:
        return ""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    return str(text)


def _with_bos(text: str, tokenizer: Any) -> str:
    adds_bos = tokenizer.bos_token_id in tokenizer("a")["input_ids"][:1]
    return f"{tokenizer.bos_token}{text}" if adds_bos else text


def render_prompt(prompt: str, tokenizer: Any, conversational: bool) -> str:
    """An evaluation prompt in the form of the training rows."""
    if conversational:
        return _render([{"role": "user", "content": prompt}], tokenizer, generate=True)
    return _with_bos(prompt, tokenizer)


def encode(segments: list[Segment], tokenizer: Any, max_length: int) -> Tokens:
    """Tokenize the segments one by one; the last answer ends with EOS."""
    ids: list[int] = []
    labels: list[int] = []
    last_answer = max((at for at, (_, judged) in enumerate(segments) if judged), default=-1)
    for at, (text, judged) in enumerate(segments):
        part = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        if at == last_answer and tokenizer.eos_token_id not in part:
            part.append(tokenizer.eos_token_id)
        ids += part
        labels += part if judged else [IGNORE] * len(part)
    return Tokens(ids=ids[:max_length], labels=labels[:max_length])


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
