"""4-bit weights that change when they are sharded: noticed before anything is trained, and the run goes on whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer.messages import Progress, WarningLine
from trainer.probes import flip_a_bit, in_ranks, look_inside, reports
from trainer.tiny import Assets, Ending, Launch, a_config
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(300)]

RunQlora = Callable[..., Ending]


@pytest.fixture
def run_qlora(assets: Assets, tmp_path: Path, zygote: Zygote) -> RunQlora:
    """Two ranks train a 4-bit model."""

    def run(name: str, strategy: str, **probe: str) -> Ending:
        config = a_config(assets, tmp_path / name, ranks=2)
        config["method"] = {"qlora": {"r": 4, "loraAlpha": 8, "targetModules": ["all-linear"]}}
        config["distributed"] = {"strategy": strategy}
        config["evaluation"]["prompts"] = []
        return Launch(config, tmp_path / name, zygote=zygote, **probe).end(120)

    return run


def test_weights_damaged_by_sharding_are_not_trained_with(run_qlora: RunQlora, tmp_path: Path) -> None:
    """One bit on one rank: every rank holds the whole model instead, and status learns of it."""
    ending = run_qlora("damaged", "FSDP", **in_ranks(flip_a_bit, tmp_path))
    expected = run_qlora("whole", "DDP")
    warnings = [line.message for line in ending.lines if isinstance(line, WarningLine)]
    last = [line for line in ending.lines if isinstance(line, Progress)][-1]

    assert (ending.code, ending.termination.outcome) == (0, "Succeeded")
    assert ending.losses == expected.losses
    assert len(warnings) == 1
    assert warnings[0].startswith("FSDP is not used, every rank holds the whole model: 4-bit weights changed when")
    for said in (last, ending.termination):
        assert (said.strategy, said.warning) == ("DDP", warnings[0])


def test_weights_that_survive_sharding_stay_sharded(run_qlora: RunQlora, tmp_path: Path) -> None:
    """On both ranks, without a warning."""
    ending = run_qlora("sound", "FSDP", **in_ranks(look_inside, tmp_path / "seen"))
    progress = [line for line in ending.lines if isinstance(line, Progress)]

    assert ending.code == 0
    assert [seen["strategy"] for seen in reports(tmp_path / "seen")] == ["FSDP", "FSDP"]
    assert {line.strategy for line in progress} == {"FSDP"}
    assert not any(isinstance(line, WarningLine) for line in ending.lines)
    packed = [p for p in reports(tmp_path / "seen")[1]["parameters"].items() if p[0].endswith("base_layer.weight")]
    assert len(packed) == 14
    assert all(parameter["own"] * 2 == parameter["whole"] for _, parameter in packed)
