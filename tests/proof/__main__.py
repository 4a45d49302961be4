"""``make prove``, or ``python -m proof [--part PART] [--only TEXT] [--seeds N]``.

The operator dies everywhere, the network does its worst, somebody takes and changes what is ours, and ten minutes of
everything at once leave nothing behind.
Writes ``docs/proof.json`` and the page made from it; a part that is run alone replaces what is written about it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apiserver import required_binaries
from proof.behind import behind_cases
from proof.fault_plan import every_kind, kinds_of
from proof.page import record, record_soak
from proof.scenarios import SCENARIOS, Scenario
from proof.soak import run_soak
from proof.sweep import BEHIND, PARTS, REFERENCE, Case, Theatre, compare, crash_cases, killed_cases, playing
from provenance import current_commit

WITH_TWO = ("undisturbed", "preemption")
"""Scenarios that two operators play at once."""
SOAK = "soak"
SET_UP = "set-up"
KILLED = 20
"""Cases with a process, over all scenarios."""


def cases_of(scenario: Scenario, writes: int, seeds: int) -> list[Case]:
    """Everything that is tried with a scenario."""
    cases = crash_cases(scenario, writes)
    if scenario.name in WITH_TWO:
        cases.append(Case(scenario, operators=2))
    cases += [Case(scenario, seed=seed) for seed in range(1, seeds + 1)]
    share, more = divmod(KILLED, len(SCENARIOS))
    return cases + killed_cases(scenario, writes, share + (SCENARIOS.index(scenario) < more))


def main() -> int:
    """Run what was asked for; 1 when anything came to another end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=(*PARTS, SOAK), action="append", help="what to run (default: all of it)")
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    parser.add_argument("--seeds", type=int, default=10, help="fault plans of each scenario (default 10)")
    parser.add_argument("--soak-seconds", type=float, default=600, help="how long the soak lasts (default 600)")
    options = parser.parse_args()
    parts: Sequence[str] = options.part or (*PARTS, SOAK)
    commit = current_commit()
    is_right = True
    if set(parts) & set(PARTS):
        is_right = _prove_cases(parts, options.only, options.seeds, commit)
    if SOAK in parts and not options.only:
        is_right = _soak(options.soak_seconds, commit) and is_right
    return 0 if is_right else 1


def _soak(seconds: float, commit: str) -> bool:
    begun = time.monotonic()
    soak = asyncio.run(run_soak(seconds))
    print(f"soak: {soak.jobs} jobs, {soak.faults.total()} faults, {len(soak.problems)} problems")
    for problem in soak.problems:
        print(f"WRONG {problem}")
    record_soak(soak, time.monotonic() - begun, commit)
    return not soak.problems


def _prove_cases(parts: Sequence[str], only: str, seeds: int, commit: str) -> bool:
    done: list[Case] = []
    spent: Counter[str] = Counter()
    """Part -> seconds."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="proof-") as folder, playing(Path(folder), required_binaries()) as stage:
        spent[SET_UP] = round(time.monotonic() - begun)
        if set(parts) - {BEHIND}:
            for scenario in SCENARIOS:
                done += _prove(stage, scenario, parts, only, seeds, spent)
        if BEHIND in parts:
            with _timed(spent, BEHIND):
                done += _prove_behind(stage, only)
    wrong = [case for case in done if case.problems]
    for case in wrong:
        print(f"WRONG {case.name}: {'; '.join(case.problems)}")
        for fault in case.faults:
            print(f"      {fault}")
    print(f"{len(done)} cases, {len(wrong)} wrong")
    unmet = sorted(every_kind() - kinds_of(fault for case in done for fault in case.faults).keys())
    if "faults" in parts and not only and unmet:
        print(f"WRONG no plan met {', '.join(unmet)}")
        wrong += done[:1]
    if not only:
        record(done, parts, spent, commit)
    return not wrong


@contextmanager
def _timed(spent: Counter[str], part: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    spent[part] += round(time.monotonic() - begun)


def _prove_behind(stage: Theatre, only: str) -> Sequence[Case]:
    """Nothing to compare with: each case says itself what must come of it."""
    begun = time.monotonic()
    cases = [case for case in behind_cases() if only in case.name]
    asyncio.run(stage.run_all(cases))
    bad, seconds = sum(bool(case.problems) for case in cases), time.monotonic() - begun
    print(f"behind the back: {len(cases)} cases, {bad} wrong, {seconds:.0f} s", flush=True)
    return cases


def _prove(
    stage: Theatre, scenario: Scenario, parts: Sequence[str], only: str, seeds: int, spent: Counter[str]
) -> Sequence[Case]:
    begun = time.monotonic()
    with _timed(spent, REFERENCE):
        reference = stage.play_undisturbed(scenario)
    if reference.problems:
        return [reference]
    every = cases_of(scenario, len(reference.writes), seeds)
    cases = [case for case in every if case.part in parts and only in case.name]
    for part in dict.fromkeys(case.part for case in cases):
        with _timed(spent, part):
            asyncio.run(stage.run_all([case for case in cases if case.part == part]))
    for case in cases:
        compare(case, reference)
    bad = sum(bool(case.problems) for case in cases)
    died, late = sum(case.has_crashed for case in cases), sum(case.has_fewer_writes for case in cases)
    print(
        f"{scenario.name}: {len(reference.writes)} writes, {len(cases)} cases, {bad} wrong, {died} deaths, "
        f"{late} with too few writes, {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    return [reference, *cases]


if __name__ == "__main__":
    sys.exit(main())
