"""Which rows share a sequence: first-fit decreasing, once per run, before anything is shuffled.

A row keeps its place for the whole run, so the sampler shuffles packs as it would rows and a run that is resumed on
other ranks meets the same packs. First-fit decreasing needs at most 11/9 of the fewest sequences possible, plus one.
"""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Row numbers from 0, each exactly once, in lists of at most ``max_length`` tokens together.

    A longer row counts as ``max_length``, for that is where it is cut. Rows of a pack, and packs by their first row,
    are in ascending order.
    """
    sizes = [min(length, max_length) for length in lengths]
    room = _Room(len(sizes), max_length)
    packs: dict[int, list[int]] = {}
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        packs.setdefault(room.take(sizes[row]), []).append(row)
    return sorted(sorted(pack) for pack in packs.values())


class _Room:
    """Finds the first pack with room in logarithmic time: a tree over the room left, as deep as there may be packs."""

    def __init__(self, packs: int, max_length: int) -> None:
        self._leaves = 1 << max(packs - 1, 0).bit_length()
        self._most = [max_length] * (2 * self._leaves)

    def take(self, size: int) -> int:
        """Room for ``size`` tokens in the first pack that has it; returns the pack's number."""
        node = 1
        while node < self._leaves:
            node *= 2
            if self._most[node] < size:
                node += 1
        pack = node - self._leaves
        self._most[node] -= size
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
        return pack
