"""What is done to a gang, when, with whose eyes on it, and what must come of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_operator.constants import Cause
from finetune_operator.core.restart_policy import DISRUPTIONS

Moment = Literal["step 0", "mid-run"]
Watcher = Literal["running", "stopped"]
STEPS: dict[Moment, int] = {"step 0": 0, "mid-run": 8}

CAUSES: dict[str, str] = {
    "evict rank 1": Cause.PREEMPTED,
    "delete its node object": Cause.NODE_LOST,
    "kill its node": Cause.NODE_LOST,
    "kill -9 of a worker": Cause.UNKNOWN,
    "memory limit": Cause.OUT_OF_MEMORY,
    "exit 77": Cause.OUT_OF_MEMORY,
    "bad dataset row": Cause.USER_ERROR,
    "non-finite loss": Cause.APPLICATION,
    "hang": Cause.HANG,
}
"""Fault -> the exact cause."""

OF_NODES = ("delete its node object", "kill its node")
"""Faults that take a node away: one at a time."""

RANK = 1
"""Whom everything else happens to."""

REPORTED_BY_ANYONE = ("hang",)
"""Faults that stop all ranks alike: the one that says so first is blamed."""

FROM_OUTSIDE = ("evict rank 1", *OF_NODES)
"""Faults that nobody in the pod commits."""


@dataclass(frozen=True)
class Cell:
    """One experiment."""

    fault: str
    moment: Moment
    operator: Watcher
    recipe: Literal["torch-free", "real"] = "torch-free"

    @property
    def job(self) -> str:
        """Name of its FineTuneJob."""
        words = f"{self.fault} {self.moment} {self.operator} {self.recipe}".replace("-", " ").split()
        short = "-".join(word[:4] for word in words)
        return f"cell-{short}"[:45]

    @property
    def cause(self) -> str:
        """What must be recorded when the operator watches."""
        return CAUSES[self.fault]

    @property
    def is_final(self) -> bool:
        """Whether the run must end without another attempt."""
        return self.cause == Cause.USER_ERROR


def design() -> list[Cell]:
    """Faults within the pods in every combination; those of nodes, which take minutes, so that each pair occurs."""
    moments: tuple[Moment, ...] = ("step 0", "mid-run")
    watchers: tuple[Watcher, ...] = ("running", "stopped")
    cells = [
        Cell(fault, moment, operator)
        for operator in watchers
        for moment in moments
        for fault in CAUSES
        if fault not in OF_NODES
    ]
    diagonal: tuple[tuple[Moment, Watcher], ...] = (("step 0", "running"), ("mid-run", "stopped"))
    counter: tuple[tuple[Moment, Watcher], ...] = (("mid-run", "running"), ("step 0", "stopped"))
    cells += [Cell("delete its node object", *pair) for pair in diagonal]
    cells += [Cell("kill its node", *pair) for pair in counter]
    return cells


def real_design() -> list[Cell]:
    """The real trainer once per cause, in the middle of its run."""
    faults = (
        "evict rank 1",
        "kill -9 of a worker",
        "memory limit",
        "exit 77",
        "bad dataset row",
        "non-finite loss",
        "hang",
        "kill its node",
    )
    return [Cell(fault, "mid-run", "running", "real") for fault in faults]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell."""

    cause: str
    rank: int | None
    attempts: int
    failures: int
    phase: str
    message: str = ""
    seconds: float = 0.0
    victim: int | None = RANK
    """The rank that must be blamed; None: nobody can know."""


def problems(cell: Cell, outcome: Outcome) -> list[str]:
    """What is not as it must be."""
    found = []
    if outcome.cause != cell.cause and not (cell.operator == "stopped" and _is_same_class(cell.cause, outcome.cause)):
        found.append(f"cause {outcome.cause or 'none'} instead of {cell.cause}")
    if outcome.victim is not None and outcome.rank != outcome.victim:
        found.append(f"rank {outcome.rank} instead of {outcome.victim}")
    if cell.is_final:
        if (outcome.phase, outcome.attempts) != ("Failed", 1):
            found.append(f"{outcome.phase} after {outcome.attempts} attempts instead of Failed after 1")
        return found
    if outcome.phase != "Complete":
        found.append(f"{outcome.phase} instead of Complete")
    if outcome.attempts != 2:
        found.append(f"{outcome.attempts} attempts instead of 2")
    is_counted = cell.cause in (Cause.APPLICATION, Cause.HANG)
    if outcome.failures != int(is_counted):
        found.append(f"{outcome.failures} failures counted instead of {int(is_counted)}")
    return found


def _is_same_class(expected: str, found: str) -> bool:
    """What a disruption is called is of no consequence: none of them counts."""
    return expected in DISRUPTIONS and found in DISRUPTIONS
