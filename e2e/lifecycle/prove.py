"""``python -m e2e.lifecycle.prove [--only TEXT]``: what ends a gang, and what the operator makes of it.

A cluster with real kubelets, the real launcher in real containers, and a recipe that trains nothing, so that a cell
costs seconds; then the real trainer once per cause. Before that pairs of gangs that want the same nodes, which need the
real scheduler only. Writes ``docs/lifecycle-matrix.json`` and the page made from it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from e2e.jobs import Jobs
from e2e.kubectl import Json, WaitError, is_true, wait_until
from e2e.lifecycle.cells import (
    FROM_OUTSIDE,
    OF_NODES,
    RANK,
    REPORTED_BY_ANYONE,
    STEPS,
    Cell,
    Outcome,
    design,
    problems,
    real_design,
)
from e2e.lifecycle.latency import next_attempt_latencies
from e2e.lifecycle.page import RESULTS, write_page
from e2e.lifecycle.recipes import Faults, add_recipes, spec_of
from e2e.stack import ROOT, Stack, bring_up
from e2e.tiny_model import add_tiny_model
from provenance import current_commit
from quantiles import p95

CLUSTER = "lifecycle"
AT_ONCE = {"torch-free": 7, "real": 2}
PAIRS = 20
PAIRS_TEST = "tests/shell/test_gangs.py::test_two_gangs_created_together_never_hold_half_of_the_nodes_each"
MOST_LATENCY = 2.0
MOST_SECONDS = 3600
"""What the whole may take."""
CELL_FIELDS = ("fault", "moment", "operator", "recipe")


class Prover:
    """Runs cells on one cluster."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.jobs = Jobs(stack)
        self.faults = Faults(stack)
        self._victims: dict[str, int] = {}
        """Job -> the rank whose node was taken."""

    def prove(self, cells: Sequence[Cell]) -> list[tuple[Cell, Outcome]]:
        """All cells: those that take a node away one by one, the others several at once."""
        done: list[tuple[Cell, Outcome]] = []
        for batch in _batches(cells):
            begun = time.monotonic()
            outcomes = self._run(batch)
            print(f"{len(batch)} cells in {time.monotonic() - begun:.0f} s", flush=True)
            for cell, outcome in outcomes:
                print(_line(cell, outcome), flush=True)
            done += outcomes
        return done

    def _run(self, batch: Sequence[Cell]) -> list[tuple[Cell, Outcome]]:
        for cell in batch:
            self._start(cell)
        for cell in batch:
            self.faults.wait_until_held(cell.job)
        begun = time.monotonic()
        if batch[0].operator == "stopped":
            with self.stack.operator_away():
                self._break(batch)
                self._wait_until_over(batch)
        else:
            self._break(batch)
        outcomes = [(cell, self._outcome(cell, begun)) for cell in batch]
        for cell in batch:
            self.jobs.kubectl.delete("ftj", cell.job)
        self._forget_dead_nodes()
        return outcomes

    def _start(self, cell: Cell) -> None:
        self.faults.plan(cell.job, cell.fault, STEPS[cell.moment])
        self.jobs.create(
            cell.job,
            # A run of its own, whatever earlier runs of this command left in the store.
            runId=str(int(time.time())),
            backoffLimit=1,
            **spec_of(cell.recipe, steps=24),
        )

    def _break(self, batch: Sequence[Cell]) -> None:
        for cell in batch:
            if cell.fault not in FROM_OUTSIDE:
                self.faults.go(cell.job)
                continue
            if cell.fault == "evict rank 1":
                self.jobs.evict(f"{cell.job}-a1", 1)
                continue
            self._victims[cell.job], node = self._node_to_lose(cell)
            if cell.fault == "delete its node object":
                self.stack.kubectl.run("delete", "node", node, "--wait")
                time.sleep(50)  # pod GC gives an orphan 40 s before it believes that the node is gone
            self.stack.cluster.kill_node(node)
            self.stack.cluster.add_node(None)

    def _node_to_lose(self, cell: Cell) -> tuple[int, str]:
        """A rank and its node, which the operator is not on: whether it runs is the cell's other dimension."""
        taken = {pod["spec"].get("nodeName") for pod in self.stack.operator_pods()}
        nodes: list[tuple[int, str]] = [
            (rank, self.jobs.pod(f"{cell.job}-a1", rank)["spec"]["nodeName"]) for rank in (RANK, 0)
        ]
        return next(((rank, node) for rank, node in nodes if node not in taken), nodes[0])

    def _forget_dead_nodes(self) -> None:
        """As a cloud's node controller would: what is bound to them goes too."""
        for node in self.stack.kubectl.list("nodes"):
            if not is_true(node, "Ready"):
                self.stack.kubectl.delete("node", node["metadata"]["name"])

    def _wait_until_over(self, batch: Sequence[Cell]) -> None:
        """Until every pod of attempt 1 has ended or gone, while nobody looks."""
        for cell in batch:
            selector = f"batch.kubernetes.io/job-name={cell.job}-a1"

            def is_over(selector: str = selector) -> bool:
                pods = self.jobs.kubectl.list("pods", selector)
                return not any(self.jobs.is_alive(pod) and "deletionTimestamp" not in pod["metadata"] for pod in pods)

            wait_until(is_over, 150, f"{cell.job}: attempt 1 over")

    def _outcome(self, cell: Cell, begun: float) -> Outcome:
        try:
            job = self.jobs.wait_for_end(cell.job, seconds=240)
        except WaitError:
            job = self.jobs.get(cell.job)
        status = job["status"]
        first = status["attempts"][0] if status.get("attempts") else {}
        return Outcome(
            cause=first.get("cause", ""),
            rank=first.get("rank"),
            attempts=status["totals"]["attempts"],
            failures=status["totals"]["failures"],
            phase="Complete" if is_true(job, "Complete") else "Failed" if is_true(job, "Failed") else status["phase"],
            message=first.get("message", ""),
            seconds=round(time.monotonic() - begun, 1),
            victim=None if cell.fault in REPORTED_BY_ANYONE else self._victims.get(cell.job, RANK),
        )


def _batches(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that can run side by side: the same operator and recipe, no node taken away."""
    batches: list[list[Cell]] = []
    for cell in cells:
        last = batches[-1] if batches else []
        is_alike = last and (last[0].operator, last[0].recipe) == (cell.operator, cell.recipe)
        if is_alike and len(last) < AT_ONCE[cell.recipe] and not any(c.fault in OF_NODES for c in (*last, cell)):
            last.append(cell)
        else:
            batches.append([cell])
    return batches


def main() -> int:
    """Run what was asked for; 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cells whose words contain this, e.g. 'hang'; 'latencies'; 'pairs'")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--latencies", type=int, default=20, help="how many evictions to time (default 20)")
    options = parser.parse_args()
    begun, commit = time.monotonic(), current_commit()
    are_parted = options.only not in ("", "pairs") or try_pairs(commit)
    if options.only == "pairs":
        return 0 if are_parted else 1
    stack = bring_up(CLUSTER)
    try:
        stack.clear_storage()
        add_tiny_model(stack)
        add_recipes(stack)
        cells = [c for c in (*design(), *real_design()) if options.only in " ".join(map(str, asdict(c).values()))]
        results = Prover(stack).prove(cells)
        record(results, commit)
        is_timed = options.only in ("", "latencies")
        latencies = next_attempt_latencies(Jobs(stack), options.latencies) if is_timed else []
    finally:
        if not options.keep:
            stack.cluster.down()
    seconds = time.monotonic() - begun
    if latencies:
        _write(_known() | {"latencies": latencies, "latenciesCommit": commit})
    if not options.only:
        _write(_known() | {"seconds": round(seconds)})
    return 0 if _is_right(results, latencies, seconds) and are_parted else 1


def try_pairs(commit: str) -> bool:
    """Pairs of gangs that want the same nodes, on a control plane of their own; whether all of them finished."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "pairs.json"
        environment = {**os.environ, "GANG_PAIRS": str(PAIRS), "GANG_PAIRS_RESULT": str(result)}
        command = [sys.executable, "-m", "pytest", "-q", f"--timeout={MOST_SECONDS}", PAIRS_TEST]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        # It is written at the end, whatever that is; not, where there was nothing to run.
        pairs: Json = {"asked": PAIRS, "seconds": []}
        if result.exists():
            pairs = json.loads(result.read_text())
    _write(_known() | {"pairs": {**pairs, "commit": commit}})
    print(f"{len(pairs['seconds'])} of {PAIRS} pairs of gangs finished", flush=True)
    return done.returncode == 0 and len(pairs["seconds"]) == PAIRS


def _line(cell: Cell, outcome: Outcome) -> str:
    found = problems(cell, outcome)
    words = (
        f"{cell.fault}, {cell.moment}, operator {cell.operator}, {cell.recipe}: {outcome.cause} (rank {outcome.rank})"
    )
    end = f"{outcome.phase} after {outcome.attempts} attempts, {outcome.seconds} s"
    trouble = f": {'; '.join(found)}: {outcome.message}" if found else ""
    return f"{'WRONG' if found else 'ok':5} {words}, {end}{trouble}"


def record(results: Sequence[tuple[Cell, Outcome]], commit: str) -> None:
    """Put the results beside those of cells that were not run again, each with the commit that it was run on."""
    known = _known()
    rows = {Cell(*(row[field] for field in CELL_FIELDS)).job: row for row in known["cells"]}
    for cell, outcome in results:
        words = {**asdict(cell), **asdict(replace(outcome, message="")), "problems": problems(cell, outcome)}
        rows[cell.job] = {**words, "commit": commit}
    order = [cell.job for cell in (*design(), *real_design())]
    known["cells"] = [rows[job] for job in order if job in rows]
    _write(known)


def _known() -> Json:
    """What earlier runs found."""
    nothing: Json = {"cells": [], "latencies": []}
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else nothing


def _write(known: Json) -> None:
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    write_page()


def _is_right(results: Sequence[tuple[Cell, Outcome]], latencies: Sequence[float], seconds: float) -> bool:
    """Whether all is as it must be; prints it."""
    wrong = sum(bool(problems(cell, outcome)) for cell, outcome in results)
    print(f"{len(results)} cells, {wrong} wrong, {seconds / 60:.1f} minutes")
    if latencies:
        print(f"last pod's end -> next Job: p95 {p95(latencies):.2f} s of {len(latencies)} (at most {MOST_LATENCY} s)")
    is_slow = seconds > MOST_SECONDS or (bool(latencies) and p95(latencies) > MOST_LATENCY)
    return not wrong and not is_slow


if __name__ == "__main__":
    sys.exit(main())
