"""``docs/proof.md`` from ``docs/proof.json``."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proof.fault_plan import OF_WATCHES, every_kind, kinds_of
from proof.soak import Soak
from proof.sweep import BEHIND, LANES, REFERENCE, SPENT, Case
from provenance import made_on
from quantiles import quantile

RESULTS = Path(__file__).parents[2] / "docs" / "proof.json"
PAGE = RESULTS.with_suffix(".md")

Row = dict[str, Any]

CRASH_SECONDS = 2.0
"""What a case in which the operator dies may take."""
PROVE_MINUTES = 60
"""What all of it may take."""

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
the operator's core, queue and client in the same process.

"""

_SCENARIOS_HEAD = """
## Scenarios

Each is played once undisturbed, which numbers its writes (every call that changes something, events included). Then

- the operator *dies* before and after each of these writes, and a fresh one takes over;
- *two operators* play it at once;
- it is played behind a proxy that refuses, delays, cuts, repeats and withholds what the API server and the operator say
  to each other, by a seeded *fault plan*: 401, 403, 409, 422, 429 with Retry-After, 500, 503, requests that nobody
  answers, connections that break before, after and within an answer, stale reads, watches that end with 410, fall
  silent, lose, repeat or delay events;
- the operator is a *process* of its own, as in its image, and is killed with SIGKILL at such a write.

The end must be the same each time: conditions and reasons, attempts with causes, exit codes, steps and messages,
totals, checkpoint, plan, result and children. By the API server's audit log no attempt may have been started twice.
The operator looks at a job that nothing was heard of every 300 s, as in its image, so that no event may be overlooked;
only where a plan loses events on their way (every second one) it is 2 s.

Where a run had come to its end before the write at which the operator was to die, for it needed one less than the
undisturbed one, it was played again, up to three times; what then is left is in *too few writes*.

| scenario | writes | deaths | too few writes | two operators | fault plans | faults | processes killed | not the same |
|---|---|---|---|---|---|---|---|---|
"""


def record(cases: Sequence[Case], parts: Sequence[str], seconds: Mapping[str, float], commit: str) -> None:
    """These parts anew, run on this commit, beside what is known about the others, and how long each of them took."""
    known = _read()
    new = {*parts, *(case.part for case in cases)}
    rows = [row for row in known["cases"] if row["part"] not in new]
    rows += [{**_row(case), "commit": commit} for case in cases]
    _write({**known, "seconds": {**known.get("seconds", {}), **seconds}, "cases": rows})


def record_soak(soak: Soak, seconds: float, commit: str) -> None:
    """The soak anew."""
    figures = {
        "seconds": soak.seconds,
        "jobs": soak.jobs,
        "done": soak.done,
        "faults": soak.faults,
        "quarters": {measure: soak.quarters(measure) for measure in soak.samples},
        "idle": soak.idle,
        "left": soak.left,
        "problems": soak.problems,
        "commit": commit,
    }
    known = _read()
    _write({**known, "seconds": {**known.get("seconds", {}), "soak": round(seconds)}, "soak": figures})


def _read() -> Row:
    known: Row = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": []}
    if "seconds" not in known:
        return {"cases": []}  # written before anything was timed
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
        "unseen": case.is_unseen,
        "faults": kinds_of(case.faults),
        "writes": len(case.writes),
        "seconds": round(case.seconds, 1),
        "spent": {word: round(seconds, 2) for word, seconds in case.spent.items()},
        "problems": case.problems,
    }


def write_page() -> None:
    """The page."""
    results = _read()
    rows: list[Row] = results["cases"]
    scenarios = [row for row in rows if row["part"] != BEHIND]
    text = _HEAD + _limits(results, [row for row in rows if row["part"] != REFERENCE]) + _SCENARIOS_HEAD
    for name in dict.fromkeys(row["scenario"] for row in scenarios):
        text += _line(name, [row for row in scenarios if row["scenario"] == name])
    text += f"\n{len(scenarios)} cases, run {made_on(*scenarios)} (`+`: with what was not committed).\n"
    text += f"""
In {sum(row["unseen"] for row in scenarios)} of {len(scenarios)} cases nobody saw the last words of pods, which can be
read for half a second: exit code, step and checkpoint are missing there; nothing else is different.
"""
    text += _times(rows)
    text += _behind([row for row in rows if row["part"] == BEHIND])
    if soak := results.get("soak"):
        text += _soak(soak)
    PAGE.write_text(text)


def _limits(results: Row, rows: Sequence[Row]) -> str:
    """What was asked for, and what came of it."""
    soak = results.get("soak", {"faults": {}, "problems": ["no soak"], "left": {}})
    problems = [problem for row in rows for problem in row["problems"]] + soak["problems"]
    twice = sum("times" in problem or "twice" in problem or "same time" in problem for problem in problems)
    lost = sum("not after" in problem or "not complete" in problem or "to rest" in problem for problem in problems)
    crashes = [row for row in rows if row["part"] == "crash" and row["died"]]
    quick = sum(row["seconds"] <= CRASH_SECONDS for row in crashes)
    planned = _met(rows)
    seconds = results.get("seconds", {})
    parts = ", ".join(f"{part} {value / 60:.1f}" for part, value in seconds.items())
    lines = (
        ("cases that came to the same end", "all", f"{sum(not row['problems'] for row in rows)} of {len(rows)}"),
        ("attempts started twice, gangs beside each other", "0", str(twice)),
        ("jobs lost", "0", str(lost)),
        ("kinds of faults met by plans, and by the soak", *_kinds(planned, soak["faults"])),
        (
            f"a case in which the operator dies, {LANES} at a time",
            f"{CRASH_SECONDS:g} s",
            f"{quick} of {len(crashes)} within",
        ),
        ("all of `make prove`, minutes", f"{PROVE_MINUTES}", f"{sum(seconds.values()) / 60:.1f} ({parts})"),
    )
    text = "| | limit | measured |\n|---|---|---|\n"
    return text + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _met(rows: Sequence[Row]) -> set[str]:
    """Faults that any case met."""
    return {name for row in rows for name in row["faults"]}


def _kinds(planned: set[str], soaked: Mapping[str, int]) -> tuple[str, str]:
    every = every_kind()
    return f"{len(every)} each", f"{len(every & planned)}, {len(every & soaked.keys())}"


def _times(rows: Sequence[Row]) -> str:
    """What a case takes, and what the time is made of."""
    crashes = [row for row in rows if row["part"] == "crash" and row["died"] and row["spent"]]
    if not crashes:
        return ""
    took = [row["seconds"] for row in crashes]
    alone = [row["seconds"] for row in rows if row["part"] == REFERENCE]
    start, story, rest, end = (quantile([row["spent"][word] for row in crashes], 0.5) for word in SPENT)
    return f"""
A case in which the operator dies takes {quantile(took, 0.5):.1f} s (median) to {max(took):.1f} s, {LANES} at a time.
The undisturbed ones, alone, take {min(alone):.1f} to {max(alone):.1f} s: what the time is made of is Kubernetes' own
controllers and the simulated gang, which trains for 0.3 s. Medians: {start:.1f} s for the operator to start,
{story:.1f} s for the story until its end shows in the status, {rest:.1f} s until nothing has changed between two looks,
{end:.1f} s to stop everything.
"""


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
    requests, watches = (
        ", ".join(
            f"{count} {name.removeprefix(OF_WATCHES)}"
            for name, count in sorted(soak["faults"].items())
            if name.startswith(OF_WATCHES) == of_watches
        )
        for of_watches in (False, True)
    )
    rows = "".join(
        f"| {words} | {' | '.join(f'{value / unit:{form}}' for value in _course(soak, measure))} |\n"
        for measure, words, unit, form in (
            ("resident", "resident memory, MiB", 2**20, ".1f"),
            ("files", "open files", 1, ".0f"),
            ("tasks", "tasks of the event loop", 1, ".0f"),
        )
    )
    left = f"{sum(soak['left'].values()):.0f} in {len(soak['left'])} tables"
    problems = "".join(f"\n- **{problem}**" for problem in soak["problems"]) or "None."
    return f"""
## Soak

{soak["seconds"] / 60:.0f} minutes with a hundred jobs at any time on nodes simulated by kwok, the operator as a process
behind the proxy, run {made_on(soak)}: {soak["jobs"]} jobs ({done}), each deleted and followed by the next. One of the
operator's watches was cut every two seconds. Its requests met
{requests}; its watches met
{watches}.

| | before the first job | second quarter | third | last | after the last job |
|---|---|---|---|---|---|
{rows}
Those of the quarters are medians. From the second to the last memory may grow by what half of the jobs would leave
behind if each was kept (16 KiB of it); files and tasks come and go with what is asked and answered, and with what runs.
After the last fault the jobs that were left all had to complete, none started twice, no pod alive. Then all were
deleted: no more than three files or tasks may be open that were not before the first job, and of no job the operator
may still know (`finetune_operator_known_jobs`): {left}. Problems: {problems}
"""


def _course(soak: Row, measure: str) -> tuple[float, ...]:
    before, after = soak["idle"][measure]
    return before, *soak["quarters"][measure], after


def _line(name: str, rows: Sequence[Row]) -> str:
    parts = Counter(row["part"] for row in rows)
    values = (
        name,
        max((row["at"] for row in rows if row["part"] == "crash"), default=""),
        sum(row["died"] for row in rows if row["part"] == "crash"),
        sum(not row["died"] for row in rows if row["at"]),
        parts["two operators"],
        parts["faults"],
        sum(sum(row["faults"].values()) for row in rows),
        sum(row["died"] for row in rows if row["part"] == "killed"),
        sum(bool(row["problems"]) for row in rows),
    )
    return "| " + " | ".join(str(value) for value in values) + " |\n"


if __name__ == "__main__":
    write_page()
