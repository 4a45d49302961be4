"""The operator dies between any two of its writes, and two of them work at once: the end is the same.

Some points of each scenario; ``make prove`` tries them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from apiserver import ApiServer
from e2e.kubectl import Kubectl
from fake_kubelets import FakeKubelets
from operator_process import OperatorProcess
from proof.scenarios import SCENARIOS, Scenario
from proof.sweep import Case, Theatre, compare, crash_cases

pytestmark = pytest.mark.api

EVERY = 20
"""Of the points of a scenario this test tries one in so many."""


@pytest.fixture(scope="module")
def theatre(
    api_server: ApiServer, operator: OperatorProcess, new_namespace: Callable[[], Kubectl]
) -> Iterator[Theatre]:
    """The real scheduler, simulated kubelets, and no other operator."""
    operator.stop()
    with api_server.scheduling(), FakeKubelets(api_server) as kubelets:
        theatre = Theatre(api_server, kubelets)
        theatre.set_up(new_namespace())
        yield theatre
    operator.start()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
def test_an_operator_that_dies_between_two_writes_comes_to_the_same_end(theatre: Theatre, scenario: Scenario) -> None:
    """No attempt is started twice, and none is lost."""
    reference = theatre.play_undisturbed(scenario)
    assert reference.problems == []

    cases = crash_cases(scenario, len(reference.writes))[SCENARIOS.index(scenario) % EVERY :: EVERY]
    asyncio.run(theatre.run_all(cases))

    for case in cases:
        compare(case, reference)
    assert {case.name: case.problems for case in cases if case.problems} == {}
    assert all(case.has_crashed or case.has_fewer_writes for case in cases)
    assert any(case.has_crashed for case in cases)


@pytest.mark.parametrize("name", ["undisturbed", "preemption"])
def test_two_operators_at_once_come_to_the_same_end(theatre: Theatre, name: str) -> None:
    """Deterministic names and resource versions keep them apart."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    one, two = theatre.play_undisturbed(scenario), Case(scenario, operators=2)
    asyncio.run(theatre.run_all([two]))
    compare(two, one)
    assert two.problems == []
