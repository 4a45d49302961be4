"""What the matrix of lifecycles demands of a cell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from e2e.lifecycle.cells import OF_NODES, Cell, Outcome, design, problems, real_design

pytestmark = pytest.mark.unit

GOOD = Outcome(cause="OutOfMemory", rank=1, attempts=2, failures=0, phase="Complete")
CELL = Cell("memory limit", "mid-run", "running")


def test_a_run_that_goes_on_after_the_right_cause_has_no_problem() -> None:
    """One more attempt, and nothing counted."""
    assert problems(CELL, GOOD) == []


def test_the_wrong_rank_is_a_problem() -> None:
    """Whoever reads the record looks for the log of that rank."""
    assert problems(CELL, replace(GOOD, rank=0)) == ["rank 0 instead of 1"]
    assert problems(CELL, replace(GOOD, rank=None)) == ["rank None instead of 1"]


def test_the_rank_whose_node_was_taken_is_the_right_one() -> None:
    """Which one that is depends on where the operator runs."""
    lost = replace(GOOD, cause="NodeLost", rank=0, victim=0)
    assert problems(Cell("kill its node", "mid-run", "running"), lost) == []


def test_any_rank_may_report_a_hang() -> None:
    """All of them stop."""
    hang = Outcome(cause="Hang", rank=0, attempts=2, failures=1, phase="Complete", victim=None)
    assert problems(Cell("hang", "mid-run", "running"), hang) == []


def test_a_disruption_that_nobody_watched_needs_the_class_only() -> None:
    """A lost node instead of an eviction, but no failure of the job."""
    evicted = Cell("evict rank 1", "mid-run", "stopped")
    assert problems(evicted, replace(GOOD, cause="NodeLost")) == []
    assert problems(evicted, replace(GOOD, cause="Application")) == ["cause Application instead of Preempted"]
    assert problems(replace(evicted, operator="running"), replace(GOOD, cause="NodeLost"))


def test_every_cell_has_a_job_of_its_own() -> None:
    """Their names are cut."""
    cells = [*design(), *real_design()]
    assert len({cell.job for cell in cells}) == len(cells)


def test_every_fault_that_takes_no_node_meets_the_real_trainer() -> None:
    """One lost node is enough: there the trainer has no say."""
    faults = {cell.fault for cell in design()} - set(OF_NODES)
    assert faults <= {cell.fault for cell in real_design()}
