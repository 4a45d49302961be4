"""``docs/proof.md`` from ``docs/proof.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from proof.sweep import Case

RESULTS = Path(__file__).parents[2] / "docs" / "proof.json"
PAGE = RESULTS.with_suffix(".md")

_HEAD = """# Wherever the operator dies

Written by `make prove`: a real etcd, kube-apiserver, controller-manager and scheduler, kubelets that are simulated, and
the operator's core, queue and client in the same process. Each scenario is played once undisturbed, which numbers its
writes (every call that changes something, events included). Then the operator dies before and after each of them and a
fresh one takes over; two operators play it at once; and it is played behind a proxy that refuses, delays, cuts, repeats
and withholds what the API server and the operator say to each other, by a seeded plan.

The end must be the same each time: conditions and reasons, attempts with their causes, totals, plan, result and
children. No attempt may have been started twice.

| scenario | writes | dies before or after one | two operators | fault plans | faults met | not the same |
|---|---|---|---|---|---|---|
"""


def write_results(cases: Sequence[Case], seconds: float) -> None:
    """Both files."""
    raw = {
        "seconds": round(seconds),
        "cases": [
            {
                "scenario": case.scenario.name,
                "at": case.at,
                "when": case.when,
                "operators": case.operators,
                "seed": case.seed,
                "faults": dict(Counter(fault.split(" for ")[0] for fault in case.faults)),
                "seconds": round(case.seconds, 1),
                "problems": case.problems,
            }
            for case in cases
        ],
    }
    RESULTS.write_text(json.dumps(raw, indent=1) + "\n")
    write_page()


def write_page() -> None:
    """The page."""
    raw = json.loads(RESULTS.read_text())
    text = _HEAD
    for name in dict.fromkeys(case["scenario"] for case in raw["cases"]):
        cases = [case for case in raw["cases"] if case["scenario"] == name]
        crashes = [case for case in cases if case["at"]]
        plans = [case for case in cases if case["seed"]]
        values = (
            name,
            max((case["at"] for case in crashes), default=0),
            len(crashes),
            sum(case["operators"] > 1 for case in cases) or "",
            len(plans),
            sum(sum(case["faults"].values()) for case in plans),
            sum(bool(case["problems"]) for case in cases),
        )
        text += "| " + " | ".join(map(str, values)) + " |\n"
    slowest = sorted(case["seconds"] for case in raw["cases"] if case["at"])
    if slowest:
        middle, last = slowest[len(slowest) // 2], slowest[-1]
        text += f"\n{len(raw['cases'])} cases in {raw['seconds'] / 60:.0f} minutes; a death costs {middle} s (median), "
        text += f"{last} s (most).\n"
    PAGE.write_text(text)


if __name__ == "__main__":
    write_page()
