"""The figures of ``control_plane.py``, and the page made from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from api_profile import OPERATORS
from api_profile import SECONDS as PROFILE_SECONDS

from apiserver import CLIENT_LIMITS
from kwok import NODES
from quantiles import p95, quantile

RUN_SECONDS = 2.0
"""Of each pod."""
CHANGES_PER_SECOND = 5


@dataclass
class Burst:
    """So many FineTuneJobs at once, for so many pools in turn, and their floor."""

    size: int
    pools: int = 1
    floors: list[float] = field(default_factory=list)
    """Seconds until all plain Jobs were complete, before and after."""
    like_ours: float | None = None
    """The same with pods like those of the FineTuneJobs, after them."""
    total: float = 0.0
    first_child: list[float] = field(default_factory=list)
    pods: list[float] = field(default_factory=list)
    complete: list[float] = field(default_factory=list)
    writes: Counter[str] = field(default_factory=Counter)
    passes: float = 0.0
    reads: float = 0.0
    floor_cpu: Counter[str] = field(default_factory=Counter)
    """CPU seconds by program, of the last floor."""
    like_ours_cpu: Counter[str] = field(default_factory=Counter)
    cpu: Counter[str] = field(default_factory=Counter)
    peak_mebibytes: float = 0.0
    api_profile: dict[str, float] = field(default_factory=dict)
    """Percent of the API server's CPU time by what it does; only of the burst that has a bar."""

    @property
    def floor(self) -> float:
        """Seconds."""
        return sum(self.floors) / len(self.floors)

    @property
    def operators_share(self) -> float:
        """Of all CPU time: its own, and the API server's for its reads and statuses."""
        served = sum(self.api_profile[what] for what in OPERATORS) / 100 * self.cpu["kube-apiserver"]
        return (self.cpu["finetune_operator"] + served) / self.cpu.total()

    @property
    def over_like_ours(self) -> float | None:
        """The ratio to the second floor."""
        return self.total / self.like_ours if self.like_ours is not None else None


@dataclass
class Live:
    """So many jobs that all train."""

    size: int
    all_have_status: float = 0.0
    all_run: float = 0.0
    edits: list[float] = field(default_factory=list)
    evictions: list[float] = field(default_factory=list)
    start_up: float = 0.0
    peak_mebibytes: float = 0.0
    peak_after_start: float = 0.0
    """Until the watches have listed everything as well, which they do after the first looks."""
    cpu_share: float = 0.0
    """Of one core, while there are changes."""


def spread(values: Sequence[float]) -> str:
    """Three figures."""
    return f"{quantile(values, 0.5):.2f} / {p95(values):.2f} / {max(values):.2f}"


_HEAD = """# Many jobs at once

Written by `make bench-control-plane`. A real etcd (without fsync), kube-apiserver, kube-controller-manager and
kube-scheduler (both with {limits}), {nodes} nodes simulated by kwok, and the operator, on
the {cores} cores of one machine. Each FineTuneJob is a prepare Job of one pod and then a gang of two; pods run for
{run:.0f} s. The floor is as many plain Jobs and pods created at once without an operator, in the same run; the second
one has pods like ours, with the volumes, variables and rules of a trainer's. Times are in seconds, as median / p95 /
max, from the request that creates the job.

| jobs | pools | floor | pods like ours | all complete | over the floor (200: at most 2) | over pods like ours \
| first child | pods of the gang | Complete | writes per job | RSS |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
_AFTER_BURSTS = """Of the time of the FineTuneJobs two seconds of prepare come before two of training; the floor's Jobs
run side by side. In each pool one gang at a time is created and finds its nodes (decision 0011). RSS is the operator's
peak so far.

From fifty jobs on all cores are busy, so the ratios follow the CPU seconds of the second table. Most are the API
server's. A good part of the way from the floor to the FineTuneJobs is the size of a trainer's pod: each is written
about ten times by others than the operator, and each time it is merged, validated and shown as a whole; an operator
cannot make it smaller. The rest is the operator's own: the reads and writes that are listed below that table, and that
everything is shown to it.

Where the time goes: CPU seconds, floor → pods like ours → FineTuneJobs.

| jobs | pools | {programs} | all | of {cores} cores |
|---|---|{columns}---|---|"""


_PROFILE = """The API server's CPU time in the first {seconds} s of {size} jobs at once, by its own profile: {parts}.
By these shares an operator that needs no CPU time, reads nothing and writes no status would still be at about
{idle:.1f} times the floor, if the time follows the CPU seconds: the rest is the FineTuneJob, its ConfigMaps and
Service, and what others do for pods of that size."""


def _or_dash(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)


def page(bursts: Sequence[Burst], lives: Sequence[Live]) -> str:
    """Markdown."""
    limits = ", ".join(f"`--{name}={value}`" for name, value in CLIENT_LIMITS.items())
    lines = [_HEAD.format(limits=limits, nodes=NODES, cores=os.cpu_count(), run=RUN_SECONDS)]
    for each in bursts:
        lines.append(
            f"| {each.size} | {each.pools} | {each.floor:.1f} | {_or_dash(each.like_ours, '.1f')} | {each.total:.1f} "
            f"| {each.total / each.floor:.2f} | {_or_dash(each.over_like_ours, '.2f')} "
            f"| {spread(each.first_child)} | {spread(each.pods)} | {spread(each.complete)} "
            f"| {each.writes.total() / each.size:.1f} | {each.peak_mebibytes:.0f} MiB |"
        )
    programs = sorted({program for each in bursts for program in each.cpu})
    columns = "---|" * len(programs)
    lines += ["", _AFTER_BURSTS.format(programs=" | ".join(programs), columns=columns, cores=os.cpu_count())]
    for each in bursts:
        counts = [count for count in (each.floor_cpu, each.like_ours_cpu, each.cpu) if count]
        costs = [" → ".join(f"{count[program]:.1f}" for count in counts) for program in programs]
        costs.append(" → ".join(f"{count.total():.1f}" for count in counts))
        share = each.cpu.total() / (each.total * (os.cpu_count() or 1))
        lines.append(f"| {each.size} | {each.pools} | {' | '.join(costs)} | {100 * share:.0f} % |")
    lines.append("")
    for each in bursts:
        kinds = ", ".join(f"{count / each.size:.2f} {kind}" for kind, count in sorted(each.writes.items()))
        lines.append(
            f"- for each of {each.size} jobs at once, {each.pools} pools: {each.passes / each.size:.1f} passes, "
            f"{each.reads / each.size:.1f} reads; writes: {kinds}"
        )
    for each in bursts:
        if each.api_profile:
            parts = ", ".join(f"{what} {share:.0f} %" for what, share in each.api_profile.items())
            idle = each.total / each.floor * (1 - each.operators_share)
            lines += ["", _PROFILE.format(size=each.size, seconds=PROFILE_SECONDS, parts=parts, idle=idle)]
    for each in lives:
        lines += [
            "",
            f"## {each.size} jobs that train",
            "",
            f"| | {each.size} live jobs |",
            "|---|---|",
            f"| created at once: all have a status | {each.all_have_status:.1f} s |",
            f"| all run | {each.all_run:.1f} s |",
            f"| {CHANGES_PER_SECOND} edits a second: edit -> status ({len(each.edits)}) | {spread(each.edits)} s |",
            f"| {CHANGES_PER_SECOND} evictions a second: eviction -> cause in the status ({len(each.evictions)}) "
            f"| {spread(each.evictions)} s |",
            f"| operator while edits come | {100 * each.cpu_share:.0f} % of a core |",
            f"| operator, most that was resident | {each.peak_mebibytes:.0f} MiB |",
            f"| operator started anew: has looked at all jobs | {each.start_up:.1f} s |",
            f"| most that was resident until its watches had listed all | {each.peak_after_start:.0f} MiB |",
        ]
    return "\n".join(lines) + "\n"
