"""The matrix of ``docs/trainer-matrix.md``: that it is complete and true, and some of its cases again."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.matrix import GANGS, GANGS_OFFLOADED, METHODS, PAGE, Case, design, read_results, render
from trainer.prove import Prover
from trainer.tiny import Assets
from trainer.zygote import Zygote

AGAIN = (
    Case("FSDP 2", "FSDP 2", "qlora bf16", "even"),
    Case("DDP 1", "ZeRO3 2", "full fp32", "even"),
    Case("ZeRO2 2", "DDP 1", "full fp32", "packed"),
)


@pytest.mark.unit
def test_the_page_shows_the_results() -> None:
    """`make docs-matrix` was called after the last proof."""
    assert PAGE.read_text(encoding="utf-8") == render(read_results())


@pytest.mark.unit
def test_every_case_was_proved() -> None:
    """With interruptions, and with losses within the case's tolerance."""
    results = read_results()

    assert set(results) == {case.name for case in design()}
    for case in design():
        found = results[case.name]
        assert found["difference"] <= case.tolerance, case.name
        assert found["attempts"] > 1, case.name


@pytest.mark.unit
def test_the_design_is_small_and_covers_all_pairs() -> None:
    """Of gang and method, and of gang and the strategy that takes over, among others."""
    cases = design()

    assert len(cases) <= 40
    strategies = {gang.split()[0] for gang in GANGS + GANGS_OFFLOADED}
    assert {(case.first.split()[0], case.method) for case in cases} >= {
        (strategy, method)
        for strategy in strategies
        for method in METHODS
        if not (strategy == "HSDP" and method.startswith("full"))
    }
    takers = {case.then.split()[0] for case in cases if not case.is_same_gang}
    assert {(case.first.split()[0], case.then.split()[0]) for case in cases} >= {
        (first, then) for first in strategies for then in takers
    }
    assert {case.first for case in cases if case.is_same_gang} == set(GANGS + GANGS_OFFLOADED)


@pytest.mark.trainer
@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", AGAIN, ids=lambda case: case.name)
def test_an_interrupted_run_has_the_losses_of_a_quiet_one(
    case: Case, assets: Assets, zygote: Zygote, tmp_path: Path
) -> None:
    """Interrupted at a random moment; equal to the bit where the gang stays the same."""
    proof = Prover(assets, tmp_path, zygote).prove(case, kills=1, seed=1)

    assert proof.difference <= case.tolerance
