"""Counting tokens as the trainer will see them: rendered with the chat template, with the model's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import Tokenizer

from finetune_trainer.errors import shorten
from finetune_trainer.prepare.chat import load_renderer, read_special_tokens
from finetune_trainer.prepare.dataset import LineFaults, Row, RowFormat
from finetune_trainer.prepare.model import load_tokenizer
from finetune_trainer.prepare.stop import Stop
from finetune_trainer.rows import Rendering, Segment, Tokens, label_segments, split_row

_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Tokens of one row."""

    total: int
    """Before it is cut."""
    labels: int
    """That the model is judged on, after it is cut."""


@dataclass(frozen=True)
class TokenCount:
    """Tokens of some rows, before they are cut."""

    rows: int
    total: int
    longest: int
    over_limit: int
    """Rows that are cut."""
    unlabelled: int
    """Rows of which nothing is left to learn from."""


def count_tokens(rows: Iterable[RowTokens], max_length: int) -> TokenCount:
    """Sum up."""
    found = list(rows)
    return TokenCount(
        rows=len(found),
        total=sum(row.total for row in found),
        longest=max((row.total for row in found), default=0),
        over_limit=sum(row.total > max_length for row in found),
        unlabelled=sum(row.labels == 0 for row in found),
    )


class RowCounter:
    """Renders and tokenizes rows as the trainer does."""

    def __init__(self, folder: Path, row_format: RowFormat, max_length: int) -> None:
        """Read tokenizer and chat template of the model in ``folder``.

        Raises:
            DataError: they cannot be used.
        """
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.no_truncation()  # some models ship with the limits of their last use
        self._tokenizer.no_padding()
        self._rendering = _load_rendering(folder, row_format, self._tokenizer)
        self._max_length = max_length

    def measure(self, field: str, rows: list[Row], stop: Stop) -> dict[int, RowTokens]:
        """The tokens of every row, by its line.

        Raises:
            DataError: the template refuses rows (the first five are named).
            PreemptedError: SIGTERM arrived.
        """
        faults = LineFaults(field)
        measured: dict[int, RowTokens] = {}
        for start in range(0, len(rows), _BATCH_ROWS):
            split = list(self._split(rows[start : start + _BATCH_ROWS], faults, stop))
            for row, tokens in self._tokenize(split):
                measured[row.line] = RowTokens(len(tokens.ids), tokens.cut(self._max_length).label_count)
        faults.raise_if_any()
        return measured

    def _split(self, rows: list[Row], faults: LineFaults, stop: Stop) -> Iterator[tuple[Row, list[Segment]]]:
        for row in rows:
            stop.check()
            try:
                segments = list(split_row(json.loads(row.canonical), self._rendering))
                if not any(judged and text.strip() for text, judged in segments):
                    raise ValueError("it leaves out the answer")
            except Exception as error:  # a template raises whatever its author chose
                faults.add(
                    row.line,
                    row.canonical,
                    f"the model's chat template refuses it: {shorten(str(error), 200)}",
                    "change the roles of the row as the model wants them, or use another model",
                )
            else:
                yield row, segments

    def _tokenize(self, rows: list[tuple[Row, list[Segment]]]) -> Iterator[tuple[Row, Tokens]]:
        texts = [text for _, segments in rows for text, _ in segments]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for row, segments in rows:
            parts = [next(encoded).ids for _ in segments]
            yield row, label_segments(segments, parts, self._rendering.eos_token_id)


def _load_rendering(folder: Path, row_format: RowFormat, tokenizer: Tokenizer) -> Rendering:
    special = read_special_tokens(folder)
    bos, eos = special.get("bos_token", ""), special.get("eos_token")
    adds_bos = bool(bos) and tokenizer.encode("a").ids[:1] == [tokenizer.token_to_id(bos)]
    return Rendering(
        chat=load_renderer(folder) if row_format == "messages" else _no_messages,
        bos=bos if adds_bos else "",
        eos_token_id=tokenizer.token_to_id(eos) if eos else None,
    )


def _no_messages(_messages: list[dict[str, Any]], _generate: bool) -> NoReturn:
    raise AssertionError("rows of prompt and completion need no template")
