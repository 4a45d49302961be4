"""The operator dies before and after each of its writes, in every scenario, and the network does its worst.

Each scenario runs once undisturbed, which numbers its writes; then once for every write and both sides of it. The end
must be the same, and no attempt may have been started twice.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apiserver import OPERATOR, ApiServer, serving, token_of
from audit_log import Creations
from e2e.kubectl import Json, Kubectl
from fake_kubelets import FakeKubelets, add_nodes
from faulty_proxy import Fault, faulty_proxy
from finetune_operator.constants import Cause
from finetune_operator.shell.kube import cancel_and_wait
from finetune_operator.shell.object_key import ObjectKey
from jobs import CLAIMS, a_claim, a_runtime, a_volume
from operator_process import OperatorProcess
from proof.fault_plan import CUT_SECONDS, FaultPlan, cut_watches
from proof.operator_in_process import CrashPlan, OperatorInProcess, Pace, When
from proof.scenarios import Scenario
from proof.stage import LANE_NODES, Stage

LANES = 4
"""Cases at the same time, each in a namespace of its own."""
LANE_NAMES = tuple(f"lane-{number}" for number in range(LANES))

FAULTY_SECONDS = 180.0
"""How long a scenario may wait while the network is bad: half of the passes fail, and after eight of them in a row the
operator waits for up to a minute."""

_LONGEST_NAME = 40
"""Of a scenario, as part of a FineTuneJob's, which has 45 characters at most."""

SPENT = ("start", "story", "rest", "end")
"""What a case's time goes to: the operator starts, the story is played, nothing changes any more, all is stopped."""

AUDIT_SECONDS = 0.2
"""A request is in the audit log a moment after it was answered."""

_SAVING = (Cause.PREEMPTED, Cause.SUSPENDED)
"""Causes of ends for which the gang of a scenario is asked, and saves for the same run."""
_LAST_WORDS = ("exitCode", "stepTo")

TRIES = 3
"""Of a case whose run came to its end before the write at which the operator was to die: how many writes there are
depends a little on what comes first."""


@dataclass
class Case:
    """One run of one scenario, and what came of it."""

    scenario: Scenario
    at: int = 0
    when: When = "before"
    operators: int = 1
    seed: int = 0
    """Of the faults between the operator and the API server; 0: none."""
    is_process: bool = False
    """The operator is a process of its own, as in its image, and is killed."""
    problems: list[str] = field(default_factory=list)
    form: Json = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    """What they went to."""
    has_crashed: bool = False
    is_unseen: bool = False
    """Nobody saw the last words of pods; see ``compare``."""
    jobs: list[str] = field(default_factory=list)
    """Names of its FineTuneJobs."""
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        if self.operators > 1:
            return f"{self.scenario.name}, {self.operators} operators"
        if self.seed:
            return f"{self.scenario.name}, faults of seed {self.seed}"
        word = "is killed" if self.is_process else "dies"
        return f"{self.scenario.name}, {word} {self.when} write {self.at}" if self.at else self.scenario.name

    @property
    def has_fewer_writes(self) -> bool:
        """This run was over before the write at which the operator was to die."""
        return not self.has_crashed and len(self.writes) < self.at

    @property
    def pace(self) -> Pace:
        """Of an operator in this process: a resync helps out only where events are lost, as nothing else would."""
        if not self.seed:
            return Pace()
        return Pace(Pace.resync_seconds if self.is_lossless else 2, request_seconds=2, watch_seconds=5)

    @property
    def is_lossless(self) -> bool:
        """Whether all events reach the operator in the end."""
        return self.seed % 2 == 0

    @property
    def part(self) -> str:
        """What it is about: one of ``PARTS``."""
        if self.scenario.name.startswith(BEHIND):
            return BEHIND
        if self.operators > 1:
            return "two operators"
        if self.seed:
            return "faults"
        return "killed" if self.is_process else "crash" if self.at else REFERENCE


BEHIND = "behind"
REFERENCE = "undisturbed"
PARTS = ("crash", "two operators", "faults", "killed", BEHIND)


class Theatre:
    """An API server with a scheduler, nodes with simulated kubelets, and a namespace for every lane."""

    def __init__(self, server: ApiServer, kubelets: FakeKubelets) -> None:
        self.server = server
        self.kubelets = kubelets
        self._numbers = itertools.count(1)
        self._creations = Creations(server.audit_log)

    def set_up(self, kubectl: Kubectl) -> None:
        """Nodes, a runtime, and the lanes with their claims."""
        add_nodes(kubectl, ("proof-1", "proof-2"), **{"test/nodes": "proof"})
        kubectl.create(a_volume("proof"))
        size = {"device": "cpu", "nodes": 2, "gpusPerNode": 1, "cpuPerGpu": "10m", "memoryPerGpu": "16Mi"}
        pools = [
            {**size, "name": "default", "nodeSelector": {"test/nodes": "proof"}},
            {**size, "name": "empty", "nodeSelector": {"test/nodes": "none"}},
        ]
        for lane in LANE_NAMES:
            add_nodes(kubectl, [f"{lane}-{number}" for number in LANE_NODES], **{"test/nodes": lane})
            # more than half of what a node has, and the prepare pod asks for next to nothing
            pools.append({**size, "name": lane, "nodeSelector": {"test/nodes": lane}, "cpuPerGpu": "600"})
        kubectl.apply(a_runtime("proof", pools=pools))
        for lane in LANE_NAMES:
            kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": lane}})
            kubectl.in_namespace(lane).create(*(a_claim(claim, volume="proof") for claim in CLAIMS))

    async def run_all(self, cases: Sequence[Case]) -> None:
        """All cases, in as many lanes as there are."""
        waiting = list(reversed(cases))

        async def lane(name: str) -> None:
            while waiting:
                case = waiting.pop()
                for _ in range(TRIES):
                    await self.run(case, name)
                    if not case.has_fewer_writes or case.problems:
                        break
                    if case.is_process:
                        case.at = len(case.writes)  # one of a few samples, which must not be one less

        await asyncio.gather(*(lane(name) for name in LANE_NAMES))
        await asyncio.sleep(AUDIT_SECONDS)
        for owner, job, count in await asyncio.to_thread(self._creations.more_than_one):
            for case in cases:
                if owner in case.jobs and not job.endswith("-prepare"):  # that one may be made anew
                    case.problems.append(f"{job} was created {count} times")

    def play_undisturbed(self, scenario: Scenario) -> Case:
        """What all cases of the scenario are compared with, so that it has to see all there is to be seen."""
        for _ in range(TRIES):
            case = Case(scenario)
            asyncio.run(self.run_all([case]))
            if all(each["stepTo"] for each in case.form.get("attempts", []) if each["cause"] in _SAVING):
                break
        else:
            case.problems.append("the last words of its pods were not seen")
        if not case.problems and (case.form["phase"] or "") != scenario.expected:
            case.problems.append(f"the undisturbed run is not as expected: {case.form['phase']}")
        return case

    async def run(self, case: Case, namespace: str) -> None:
        """One case; what is wrong stands in it afterwards."""
        name = f"{case.scenario.name[:_LONGEST_NAME]}-{next(self._numbers)}"
        case.jobs.append(name)
        times = [time.monotonic()]
        async with self.server.session() as session:
            stage = Stage(session, self.kubelets, namespace, name)
            stage.seconds = FAULTY_SECONDS if case.seed else stage.seconds
            plan = CrashPlan(at=case.at, when=case.when)
            operators = self._killed_process if case.is_process else self._operators
            async with operators(case, stage, plan):
                times.append(time.monotonic())
                try:
                    await stage.create(case.scenario.manifest(name, namespace))
                    await case.scenario.play(stage)
                    times.append(time.monotonic())
                    await self._settle(stage)
                    case.form = await stage.normal_form()
                except AssertionError as error:
                    case.problems.append(str(error))
                times.append(time.monotonic())
            await stage.delete()
            if case.scenario.has_own_nodes:
                await stage.cordon(False)
        case.jobs += [stage.beside.name] if stage.beside is not None else []
        case.problems += [overlap for job in case.jobs for overlap in self.kubelets.overlaps(job)]
        case.writes, case.has_crashed = plan.writes, plan.crashed.is_set()
        if case.at and not case.has_crashed and not case.has_fewer_writes:
            case.problems.append(f"it never died, in {len(case.writes)} writes")
        if case.seed and not case.faults:
            case.problems.append("it met no fault")
        times.append(time.monotonic())
        case.seconds = times[-1] - times[0]
        if not case.problems:
            case.spent = dict(zip(SPENT, (end - begin for begin, end in itertools.pairwise(times)), strict=True))

    @staticmethod
    async def _settle(stage: Stage) -> None:
        """Nothing changes any more: what a pass after the end has to tidy up is done."""
        before: Any = None
        for _ in range(40):
            form = await stage.normal_form()
            if form == before and not form["alive"] and not form["beside"].get("alive"):
                return
            before = form
            await asyncio.sleep(0.1)
        raise AssertionError(f"{stage.name} does not come to rest: {before}")

    @asynccontextmanager
    async def _killed_process(self, case: Case, stage: Stage, plan: CrashPlan) -> AsyncIterator[None]:
        """One of its own, which a proxy kills at the planned write; it is started again at once."""
        loop = asyncio.get_running_loop()
        kubeconfig = self.server.operator_kubeconfig.with_name(f"{stage.name}.kubeconfig")
        with faulty_proxy(self.server.url) as proxy:
            self.server.write_kubeconfig(kubeconfig, user=OPERATOR, server=proxy.url)
            log = kubeconfig.with_suffix(".log")
            operator = OperatorProcess(kubeconfig, log, namespace=stage.namespace)

            def kill() -> None:
                operator.kill()
                loop.call_soon_threadsafe(plan.crashed.set)

            def choose(method: str, path: str) -> Fault | None:
                if method == "GET":
                    return None
                plan.writes.append(f"{method} {path}")
                if len(plan.writes) != case.at:
                    return None
                return Fault("reset-before" if case.when == "before" else "reset-after", then=kill)

            async def start_again() -> None:
                await plan.crashed.wait()
                await asyncio.to_thread(operator.start)

            proxy.inject_by_request(choose)
            operator.start()
            undertaker = asyncio.create_task(start_again())
            try:
                yield
            finally:
                await cancel_and_wait(undertaker)
                await asyncio.to_thread(operator.stop)

    @asynccontextmanager
    async def _operators(self, case: Case, stage: Stage, plan: CrashPlan) -> AsyncIterator[None]:
        """As many as asked for; the first one dies by the plan and is replaced at once."""
        network, tasks = ExitStack(), []
        kubeconfig, url = self.server.operator_kubeconfig, self.server.url
        if case.seed:
            proxy = network.enter_context(faulty_proxy(self.server.url))
            faults = FaultPlan(case.seed, drops_events=not case.is_lossless, met=case.faults)
            proxy.inject_by_request(faults.choose)
            tasks.append(asyncio.create_task(cut_watches(proxy, CUT_SECONDS, case.seed)))
            url, kubeconfig = proxy.url, kubeconfig.with_name(f"{stage.name}.kubeconfig")
            self.server.write_kubeconfig(kubeconfig, user=OPERATOR, server=url)

        def create(plan: CrashPlan) -> OperatorInProcess:
            return OperatorInProcess(kubeconfig, url, token_of(OPERATOR), stage.namespace, plan, stage.clock, case.pace)

        def wake(name: str) -> None:
            for operator in running:
                operator.wake(ObjectKey(stage.namespace, name))

        running = [create(plan), *(create(CrashPlan()) for _ in range(case.operators - 1))]
        stage.wake = lambda: wake(stage.name)
        for operator in running:
            await operator.start()

        async def replace_the_dead() -> None:
            await plan.crashed.wait()
            await running[0].die()
            running[0] = create(CrashPlan())
            await running[0].start()

        tasks.append(asyncio.create_task(replace_the_dead()))
        try:
            yield
        finally:
            for task in tasks:
                await cancel_and_wait(task)
            for operator in running:
                await operator.die()
            await asyncio.to_thread(network.close)


@contextmanager
def playing(folder: Path, binaries: Path) -> Iterator[Theatre]:
    """A theatre with a control plane of its own on loopback, and no operator."""
    with serving(folder, binaries) as server, server.scheduling(), FakeKubelets(server) as kubelets:
        theatre = Theatre(server, kubelets)
        theatre.set_up(Kubectl(server.kubeconfig, binaries / "kubectl"))
        yield theatre


def crash_cases(scenario: Scenario, writes: int) -> list[Case]:
    """Before and after each of so many writes."""
    sides: tuple[When, When] = ("before", "after")
    return [Case(scenario, at, when) for at in range(1, writes + 1) for when in sides]


def killed_cases(scenario: Scenario, writes: int, count: int) -> list[Case]:
    """At so many points, from the first write to the last."""
    sides: tuple[When, When] = ("before", "after")
    points = [1 + round(n * (writes - 1) / max(1, count - 1)) for n in range(count)]
    return [Case(scenario, at, sides[n % 2], is_process=True) for n, at in enumerate(points)]


def compare(case: Case, reference: Case) -> None:
    """Note every difference of the two ends."""
    if case.problems:
        return
    expected, found = reference.form, _with_unseen(reference.form, case.form)
    case.is_unseen = found != case.form
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            told = json.dumps([expected.get(key), found.get(key)], default=str)
            case.problems.append(f"{key} differs: {told}")


def _with_unseen(expected: Json, found: Json) -> Json:
    """The end with what nobody may have been there to see: the last words of pods.

    They can be read for half a second. An operator that was dead then, or heard too late of it, does not know how far
    a gang that was asked to go had got, and its exit code; the next gang finds the checkpoint all the same. None of it
    may be wrong.
    """
    attempts = [
        {**mine, **{key: theirs[key] for key in _LAST_WORDS if mine[key] is None}}
        for mine, theirs in zip(found["attempts"], expected["attempts"], strict=False)
    ]
    totals = found["totals"]
    if totals.get("checkpointStep") == 0 and totals.get("withoutProgress") in (0, 1):
        totals = {**totals, **{key: expected["totals"][key] for key in ("checkpointStep", "withoutProgress")}}
    return {
        **found,
        "attempts": attempts + found["attempts"][len(attempts) :],
        "totals": totals,
        "checkpoint": expected["checkpoint"] if found["checkpoint"] is None else found["checkpoint"],
    }
