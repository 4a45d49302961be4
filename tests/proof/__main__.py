"""``python -m proof [--only TEXT] [--seeds N]``: the operator dies everywhere, and the network does its worst.

Writes ``docs/proof.json`` and the page made from it when everything was tried.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apiserver import find_binaries, serving
from e2e.kubectl import Kubectl
from fake_kubelets import FakeKubelets
from proof.page import write_results
from proof.scenarios import SCENARIOS, Scenario
from proof.sweep import Case, Theatre, compare, crash_cases

WITH_TWO = ("undisturbed", "preemption")
"""Scenarios that two operators play at once."""


@contextmanager
def theatre() -> Iterator[Theatre]:
    """A control plane of its own on loopback, as in the tests."""
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no kube-apiserver: run `make binaries`, or set KUBEBUILDER_ASSETS")
    with (
        tempfile.TemporaryDirectory(prefix="proof-") as folder,
        serving(Path(folder), binaries) as server,
        server.scheduling(),
        FakeKubelets(server) as kubelets,
    ):
        theatre = Theatre(server, kubelets)
        theatre.set_up(Kubectl(server.kubeconfig, binaries / "kubectl"))
        yield theatre


def cases_of(scenario: Scenario, writes: int, seeds: int) -> list[Case]:
    """Everything that is tried with a scenario."""
    cases = crash_cases(scenario, writes)
    if scenario.name in WITH_TWO:
        cases.append(Case(scenario, operators=2))
    return cases + [Case(scenario, seed=seed) for seed in range(1, seeds + 1)]


def main() -> int:
    """Run what was asked for; 1 when anything came to another end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios or cases whose name contains this")
    parser.add_argument("--seeds", type=int, default=10, help="fault plans of each scenario (default 10)")
    options = parser.parse_args()
    begun = time.monotonic()
    done: list[Case] = []
    with theatre() as stage:
        for scenario in SCENARIOS:
            done += _prove(stage, scenario, options.only, options.seeds)
    wrong = [case for case in done if case.problems]
    for case in wrong:
        print(f"WRONG {case.name}: {'; '.join(case.problems)}")
        for fault in case.faults:
            print(f"      {fault}")
    seconds = time.monotonic() - begun
    print(f"{len(done)} cases, {len(wrong)} wrong, {seconds / 60:.1f} minutes")
    if not options.only:
        write_results(done, seconds)
    return 1 if wrong else 0


def _prove(stage: Theatre, scenario: Scenario, only: str, seeds: int) -> Sequence[Case]:
    reference = Case(scenario)
    begun = time.monotonic()
    asyncio.run(stage.run_all([reference]))
    if reference.problems or (reference.form.get("phase") or "") != scenario.expected:
        reference.problems.append(f"the undisturbed run is not as expected: {reference.form.get('phase')}")
        return [reference]
    cases = [case for case in cases_of(scenario, len(reference.writes), seeds) if only in case.name]
    asyncio.run(stage.run_all(cases))
    for case in cases:
        compare(case, reference)
    bad = sum(bool(case.problems) for case in cases)
    seconds = time.monotonic() - begun
    print(
        f"{scenario.name}: {len(reference.writes)} writes, {len(cases)} cases, {bad} wrong, {seconds:.0f} s", flush=True
    )
    return cases


if __name__ == "__main__":
    sys.exit(main())
