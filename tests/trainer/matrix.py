"""Which combinations of strategy, method, gang and data are proved: every pair of values of two factors at least once.

A case is a run that is interrupted several times. ``then`` is the gang that takes over after each interruption; where
it is the same as ``first``, losses must be equal to the last bit.

    python -m trainer.matrix        # writes docs/trainer-matrix.md from docs/trainer-matrix.json
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "trainer-matrix.json"
PAGE = ROOT / "docs" / "trainer-matrix.md"
KILLS = 5

GANGS = ("DDP 1", "DDP 2", "DDP 3", "FSDP 2", "FSDP 3", "HSDP 4", "ZeRO2 2", "ZeRO2 3", "ZeRO3 2", "ZeRO3 3")
GANGS_OFFLOADED = ("FSDP 1 offload", "FSDP 2 offload", "ZeRO2 2 offload", "ZeRO3 2 offload")
"""Strategy and ranks. ``HSDP 4``: FSDP on two nodes of two ranks, sharded within a node, replicated across."""
METHODS = ("lora fp32", "lora bf16", "qlora fp32", "qlora bf16", "full fp32", "full bf16")
DATA = ("even", "uneven", "packed")
"""Whether ranks and micro-batches divide the global batch; packed: several rows in one sequence."""


@dataclass(frozen=True)
class Case:
    """One run."""

    first: str
    then: str
    method: str
    data: str

    @property
    def name(self) -> str:
        """For folders and test ids."""
        return f"{self.first}, {self.then}, {self.method}, {self.data}".replace(", ", "--").replace(" ", "-")

    @property
    def is_same_gang(self) -> bool:
        """Whether every attempt has the same topology."""
        return self.first == self.then

    @property
    def tolerance(self) -> float:
        """Largest difference of a loss from the uninterrupted run's."""
        if self.is_same_gang:
            return 0.0
        return 1e-5 if self.method.endswith("fp32") else 1e-3


def is_possible(case: Case) -> bool:
    """Full fine-tuning runs on one node."""
    return not (case.method.startswith("full") and "HSDP 4" in (case.first, case.then))


def design() -> list[Case]:
    """Every gang with itself, then a greedy covering of all pairs between factors; always the same list."""
    gangs = GANGS + GANGS_OFFLOADED
    cases = [
        case
        for number, gang in enumerate(gangs)
        if is_possible(case := Case(gang, gang, METHODS[number % 6], DATA[number % 3]))
        or is_possible(case := Case(gang, gang, METHODS[(number + 2) % 6], DATA[number % 3]))
    ]
    kinds = ("DDP 1", "DDP 3", "FSDP 2", "ZeRO2 3", "ZeRO3 2")
    candidates = [Case(*values) for values in itertools.product(gangs, kinds, METHODS, DATA)]
    candidates = [case for case in candidates if is_possible(case) and not case.is_same_gang]
    wanted = {pair for case in candidates for pair in _pairs(case)} - {p for case in cases for p in _pairs(case)}
    # Which gang takes over from which offloaded one says little: all of them write the same file.
    wanted = {pair for pair in wanted if not _is_minor(pair)}
    while wanted:
        best = max(candidates, key=lambda case: (len(_pairs(case) & wanted), -candidates.index(case)))
        cases.append(best)
        wanted -= _pairs(best)
    return cases


def _pairs(case: Case) -> set[tuple[tuple[str, str], ...]]:
    factors = (
        ("first", case.first.split()[0]),
        ("ranks", case.first.split()[1]),
        ("then", case.then.split()[0]),
        ("method", case.method),
        ("data", case.data),
    )
    return set(itertools.combinations(factors, 2))


def _is_minor(pair: tuple[tuple[str, str], ...]) -> bool:
    return {pair[0][0], pair[1][0]} == {"first", "ranks"}


def read_results() -> dict[str, dict[str, Any]]:
    """By the case's name, as the last proof wrote them; nothing before the first."""
    if not RESULTS.exists():
        return {}
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())
    return results


def write_results(results: dict[str, dict[str, Any]]) -> None:
    """Beside the page."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


_INTRODUCTION = """\
# What resumes where

Written by `make docs-matrix` from `docs/trainer-matrix.json`, which `make prove-trainer` writes.

Every line is a run of 40 steps on a tiny model that was interrupted {kills} times at random moments: SIGKILL of a rank
or of a whole pod, or SIGTERM. After each interruption the gang in the second column takes over. The last column is the
largest difference between any step's loss and that of the same run, uninterrupted, on the first gang: 0 where the gang
stays the same (then with dropout), at most 1e-5 (fp32) or 1e-3 (bf16) where it changes. The number behind a strategy is
that of its ranks; `DDP 1` is a single rank, `HSDP 4` is FSDP on two nodes of two ranks: sharded within, replicated
across. In bf16 the roundings of different gangs add up: over 80 steps the worst pair (HSDP 4, DDP 1) reached 2e-3.

{cases} cases cover every pair of strategy, ranks, strategy that takes over, method and kind of data.

| first | then | method | data | attempts | interrupted at steps | largest difference |
|---|---|---|---|---|---|---|
"""


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page."""
    cases = design()
    lines = []
    for case in cases:
        found = results.get(case.name)
        shown = (
            ("not run", "", "")
            if found is None
            else (
                str(found["attempts"]),
                " ".join(map(str, found["steps"])),
                f"{found['difference']:.1e}" if found["difference"] else "0",
            )
        )
        lines.append("| " + " | ".join([*(str(value) for value in asdict(case).values()), *shown]) + " |")
    return _INTRODUCTION.format(kills=KILLS, cases=len(cases)) + "".join(line + "\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(read_results()), encoding="utf-8")
    print(PAGE)
