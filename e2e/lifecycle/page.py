"""``docs/lifecycle-matrix.md`` from ``docs/lifecycle-matrix.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantiles import p95

RESULTS = Path(__file__).parents[2] / "docs" / "lifecycle-matrix.json"
PAGE = RESULTS.with_suffix(".md")

_HEAD = """# What ends a gang, and what becomes of the run

Written by `make prove-lifecycle`: a real cluster with two real kubelets, real containers with the real launcher, and a
recipe that trains nothing, so that a cell costs seconds; the real trainer once per cause below. Each cell is a
FineTuneJob on two pods. At the named step something happens to rank 1 or to its node, while the operator runs or while
it is scaled to zero. "counted" is what the end cost of `backoffLimit` (1 in all cells).

With the operator there the cause must be exact. Without it an evicted pod is gone before anybody looks: then the class
must be right, and a disruption must not count.

"""


def write_page() -> None:
    """Write it."""
    raw = json.loads(RESULTS.read_text())
    cells = raw["cells"]
    wrong = [cell for cell in cells if cell["problems"]]
    text = (
        _HEAD + f"{len(cells)} cells, {len(wrong)} of them wrong, {raw['seconds'] / 60:.0f} minutes on two cores.\n\n"
    )
    text += _table([cell for cell in cells if cell["recipe"] == "torch-free"])
    text += "\n## The real trainer\n\n" + _table([cell for cell in cells if cell["recipe"] == "real"])
    if raw["latencies"]:
        text += "\n## From the end of the last pod to the next Job\n\n" + _latencies(raw["latencies"])
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


def _latencies(latencies: Sequence[float]) -> str:
    ordered = sorted(latencies)
    return (
        f"{len(ordered)} evictions of one run: median {ordered[len(ordered) // 2]:.2f} s, p95 {p95(latencies):.2f} s, "
        f"most {ordered[-1]:.2f} s, as a watch beside the operator saw it.\n"
    )


if __name__ == "__main__":
    write_page()
