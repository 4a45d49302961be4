"""Choosing the held-out rows, and the digest that names the result.

A row's place depends on its content and the seed, not on its line: a file in another order holds out the
same rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from finetune_trainer.errors import DataError
from finetune_trainer.prepare.dataset import Row, RowFormat, canonical_lines


@dataclass(frozen=True)
class Split:
    """Training rows and held-out rows, each in the order of the file."""

    train: list[Row]
    eval: list[Row]

    def shared(self) -> int:
        """How many held-out rows are training rows as well."""
        seen = {row.canonical for row in self.train}
        return sum(row.canonical in seen for row in self.eval)


def split_rows(rows: list[Row], fraction: float, seed: int) -> Split:
    """Hold out a fraction, rounded, at least one row and never all; 0 holds out nothing.

    Raises:
        DataError: there are not enough rows for one on each side.
    """
    if fraction == 0:
        return Split(rows, [])
    if len(rows) < 2:
        raise DataError(
            "spec.dataset.evalFraction",
            str(fraction),
            f"a dataset of {len(rows)} row cannot be split; it must have at least 2",
            "add rows, or set evalFraction to 0",
        )
    count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    held_out = set(_ranked(rows, seed)[:count])
    return Split(
        [row for index, row in enumerate(rows) if index not in held_out],
        [row for index, row in enumerate(rows) if index in held_out],
    )


def _ranked(rows: list[Row], seed: int) -> list[int]:
    """Row numbers in a pseudo-random order. Equal rows are told apart by how often they came before."""
    seen: Counter[str] = Counter()
    keys = []
    for index, row in enumerate(rows):
        text = f"{seed}\n{seen[row.canonical]}\n{row.canonical}"
        keys.append((hashlib.sha256(text.encode()).digest(), index))
        seen[row.canonical] += 1
    return [index for _, index in sorted(keys)]


def data_digest(row_format: RowFormat, split: Split) -> str:
    """sha256 over format, training rows and held-out rows; the name of the staged data."""
    digest = hashlib.sha256(f"{row_format}\n{len(split.train)}\n{len(split.eval)}\n".encode())
    for rows in (split.train, split.eval):
        for line in canonical_lines(rows):
            digest.update(line)
    return digest.hexdigest()
