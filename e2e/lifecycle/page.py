"""``docs/lifecycle-matrix.md`` from ``docs/lifecycle-matrix.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provenance import UNKNOWN, made_on
from quantiles import p95, quantile

RESULTS = Path(__file__).parents[2] / "docs" / "lifecycle-matrix.json"
PAGE = RESULTS.with_suffix(".md")

_HEAD = """# What ends a gang, and what becomes of the run

Written by `make prove-lifecycle`: a real cluster with two real kubelets, real containers with the real launcher, and a
recipe that trains nothing, so that a cell costs seconds; the real trainer once per cause below. Each cell is a
FineTuneJob on two pods. At the named step something happens to rank 1, or to a node: that of rank 1 or, where the
operator is on that one, that of rank 0. The operator runs meanwhile, or is scaled to zero. "counted" is what the end
cost of `backoffLimit` (1 in all cells). Faults within a pod are committed by a hook before the step, with the real
trainer, too: there nobody's row is bad and no loss is NaN, but the trainer's own errors for that are raised.

With the operator there the cause must be exact. Without it an evicted pod is gone before anybody looks: then the class
must be right, and a disruption must not count. The rank must be the one that it happened to, save for a hang, which
stops all ranks alike: the first one to say so is named.

"""

_PAIRS_HEAD = """
## Two gangs that want the same nodes

The real scheduler, and four nodes of one GPU each with simulated kubelets. Two gangs of four pods are created together;
each must find its nodes at its first attempt.

"""


def write_page() -> None:
    """Write it."""
    raw = json.loads(RESULTS.read_text())
    cells = raw["cells"]
    wrong = [cell for cell in cells if cell["problems"]]
    text = _HEAD + f"{len(cells)} cells, {len(wrong)} of them wrong, run {made_on(*cells)} (`+`: with what was not "
    text += "committed)."
    if seconds := raw.get("seconds"):
        text += f"\nThe last run of everything took {seconds / 60:.0f} minutes on two cores."
    text += "\n\n"
    text += _table([cell for cell in cells if cell["recipe"] == "torch-free"])
    text += "\n## The real trainer\n\n" + _table([cell for cell in cells if cell["recipe"] == "real"])
    if raw["latencies"]:
        text += "\n## From the end of the last pod to the next Job\n\n"
        text += _latencies(raw["latencies"], raw.get("latenciesCommit", UNKNOWN))
    if pairs := raw.get("pairs"):
        text += _pairs(pairs)
    PAGE.write_text(text)


def _table(cells: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| fault | at | operator | cause | rank | run | attempts | counted | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        cause = cell["cause"] + ("" if not cell["problems"] else f" **{'; '.join(cell['problems'])}**")
        values = (
            cell["fault"],
            cell["moment"],
            cell["operator"],
            cause,
            "" if cell["rank"] is None else cell["rank"],
            cell["phase"],
            cell["attempts"],
            cell["failures"],
            f"{cell['seconds']:.0f}",
        )
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines) + "\n"


def _latencies(latencies: Sequence[float], commit: str) -> str:
    return (
        f"{len(latencies)} evictions of one run: median {quantile(latencies, 0.5):.2f} s, p95 {p95(latencies):.2f} s, "
        f"most {max(latencies):.2f} s, as a watch beside the operator saw it.\nRun {made_on({'commit': commit})}.\n"
    )


def _pairs(pairs: Mapping[str, Any]) -> str:
    seconds = pairs["seconds"]
    text = f"{_PAIRS_HEAD}{len(seconds)} of {pairs['asked']} pairs finished"
    if seconds:
        text += f", in {min(seconds):.1f} s to {max(seconds):.1f} s each (median {quantile(seconds, 0.5):.1f} s)"
    return f"{text}. Run {made_on(pairs)}.\n"


if __name__ == "__main__":
    write_page()
