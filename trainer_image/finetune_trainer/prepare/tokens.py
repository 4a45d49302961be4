"""Counting tokens with the model's own tokenizer, without transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from finetune_trainer.prepare.dataset import Row
from finetune_trainer.prepare.stop import Stop

_BATCH_ROWS = 1000


@dataclass(frozen=True)
class TokenCount:
    """Tokens of the rows' texts; what a chat template adds is not in it."""

    total: int
    longest: int
    over_limit: int
    """Rows longer than the limit."""


def count_tokens(tokenizer: Tokenizer, rows: list[Row], max_length: int, stop: Stop) -> TokenCount:
    """Count row by row.

    Raises:
        StopRequestedError: SIGTERM arrived.
    """
    total = longest = over = 0
    for length in _lengths(tokenizer, rows, stop):
        total += length
        longest = max(longest, length)
        over += length > max_length
    return TokenCount(total, longest, over)


def _lengths(tokenizer: Tokenizer, rows: list[Row], stop: Stop) -> Iterator[int]:
    for start in range(0, len(rows), _BATCH_ROWS):
        stop.check()
        texts = [row.texts() for row in rows[start : start + _BATCH_ROWS]]
        flat = [text for row in texts for text in row]
        encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
        for row in texts:
            yield sum(len(next(encoded).ids) for _ in row)
