"""``docs/proof.md`` from ``docs/proof.json``."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proof.fault_plan import kinds_of
from proof.soak import Soak
from proof.sweep import BEHIND, Case
from provenance import made_on
from quantiles import quantile

RESULTS = Path(__file__).parents[2] / "docs" / "proof.json"
PAGE = RESULTS.with_suffix(".md")

Row = dict[str, Any]

_BEHIND_HEAD = """
## Behind the operator's back

In each phase somebody deletes or edits one child of the job. It must complete all the same, nothing of this counts as a
failure, no two gangs run at the same time, the cause of a lost attempt is recorded, and after `kubectl delete ftj`
nothing is left that runs ([decision 0015](decisions/0015-behind-the-operators-back.md)). What was done, by phase:

"""

_DONE = {
    "leave": "left alone",
    "evict": "evicted",
    "suspend": "suspended and resumed",
    "edit": "edited",
    "restart": "given a new runId",
}

_HEAD = """# Wherever the operator dies

Written by `make prove`: a real etcd, kube-apiserver, controller-manager and scheduler, kubelets that are simulated, and
the operator's core, queue and client in the same process. Each scenario is played once undisturbed, which numbers its
writes (every call that changes something, events included). Then

- the operator *dies* before and after each of these writes, and a fresh one takes over;
- *two operators* play it at once;
- it is played behind a proxy that refuses, delays, cuts, repeats and withholds what the API server and the operator say
  to each other, by a seeded *fault plan*: 401, 403, 409, 422, 429 with Retry-After, 500, 503, connections that break
  before, after and within an answer, stale reads, watches that end with 410, lose, repeat or delay events;
- the operator is a *process* of its own, as in its image, and is killed with SIGKILL at such a write.

The end must be the same each time: conditions and reasons, attempts with their causes, totals, plan, result and
children. No attempt may have been started twice.

| scenario | writes | dies | two operators | fault plans | faults met | processes killed | not the same |
|---|---|---|---|---|---|---|---|
"""


def record(cases: Sequence[Case], parts: Sequence[str], commit: str) -> None:
    """These parts anew, run on this commit, beside what is known about the others."""
    known = _read()
    rows = [row for row in known["cases"] if row["part"] not in parts]
    rows += [{**_row(case), "commit": commit} for case in cases]
    _write({**known, "cases": rows})


def record_soak(soak: Soak, commit: str) -> None:
    """The soak anew."""
    figures = {
        "seconds": soak.seconds,
        "jobs": soak.jobs,
        "done": soak.done,
        "faults": soak.faults,
        "growth": {measure: soak.growth(measure) for measure in soak.samples},
        "problems": soak.problems,
        "commit": commit,
    }
    _write({**_read(), "soak": figures})


def _read() -> Row:
    known: Row = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": []}
    return known


def _write(results: Row) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_page()


def _row(case: Case) -> Row:
    return {
        "part": case.part,
        "scenario": case.scenario.name,
        "at": case.at,
        "when": case.when,
        "operators": case.operators,
        "seed": case.seed,
        "died": case.has_crashed,
        "faults": kinds_of(case.faults),
        "seconds": round(case.seconds, 1),
        "problems": case.problems,
    }


def write_page() -> None:
    """The page."""
    results = _read()
    rows: list[Row] = results["cases"]
    text = _HEAD
    scenarios = [row for row in rows if row["part"] != BEHIND]
    for name in dict.fromkeys(row["scenario"] for row in scenarios):
        text += _line(name, [row for row in scenarios if row["scenario"] == name])
    deaths = [row["seconds"] for row in rows if row["part"] == "crash"]
    if deaths:
        text += f"\n{len(scenarios)} cases, run {made_on(*scenarios)} (`+`: with what was not committed).\n"
        text += f"One in which the operator dies takes {quantile(deaths, 0.5)} s (median) to {max(deaths)} s, "
        text += "four of them at a time.\n"
    text += _behind([row for row in rows if row["part"] == BEHIND])
    if soak := results.get("soak"):
        text += _soak(soak)
    PAGE.write_text(text)


def _behind(rows: Sequence[Row]) -> str:
    """A table of phases and children; the acts stand in its cells."""
    if not rows:
        return ""
    cells: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        _, phase, rest = row["scenario"].split("-", 2)
        child, _, act = rest.rpartition("-")
        cells[child, phase].append(f"**{act}: {row['problems'][0]}**" if row["problems"] else act)
    phases = list(dict.fromkeys(phase for _, phase in cells))
    text = _BEHIND_HEAD + "| child | " + " | ".join(phases) + " |\n" + "|---" * (len(phases) + 1) + "|\n"
    for child in dict.fromkeys(child for child, _ in cells):
        text += f"| {child} | " + " | ".join(", ".join(cells[child, phase]) for phase in phases) + " |\n"
    wrong = sum(bool(row["problems"]) for row in rows)
    return text + f"\n{len(rows)} cases, {wrong} with another end, run {made_on(*rows)}.\n"


def _soak(soak: Row) -> str:
    done = ", ".join(f"{count} {_DONE[act]}" for act, count in sorted(soak["done"].items()))
    faults = ", ".join(f"{count} {name}" for name, count in sorted(soak["faults"].items()))
    resident, files, tasks = (soak["growth"][measure] for measure in ("resident", "files", "tasks"))
    problems = "".join(f"\n- **{problem}**" for problem in soak["problems"]) or "None."
    return f"""
## Soak

{soak["seconds"] / 60:.0f} minutes with a hundred jobs at any time on nodes simulated by kwok, the operator as a process
behind the proxy: {soak["jobs"]} jobs ({done}), each deleted and followed by the next; the operator met
{sum(soak["faults"].values())} faults ({faults}).
Run {made_on(soak)}.

| | second quarter, median | last quarter, median |
|---|---|---|
| resident memory | {resident[0] / 2**20:.1f} MiB | {resident[1] / 2**20:.1f} MiB |
| open files | {files[0]:.0f} | {files[1]:.0f} |
| tasks of the event loop | {tasks[0]:.0f} | {tasks[1]:.0f} |

After the last fault the jobs that were left all had to complete, none started twice, no pod alive. Problems: {problems}
"""


def _line(name: str, rows: Sequence[Row]) -> str:
    parts = Counter(row["part"] for row in rows)
    values = (
        name,
        max((row["at"] for row in rows if row["part"] == "crash"), default=""),
        parts["crash"],
        parts["two operators"],
        parts["faults"],
        sum(sum(row["faults"].values()) for row in rows),
        parts["killed"],
        sum(bool(row["problems"]) for row in rows),
    )
    return "| " + " | ".join(str(value) for value in values) + " |\n"


if __name__ == "__main__":
    write_page()
