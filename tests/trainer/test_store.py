"""Fences, conditional creation, pruning."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from finetune_trainer.saver import Cadence
from finetune_trainer.store import CheckpointStore, Spot

pytestmark = pytest.mark.unit


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore((tmp_path / "a b" / "run").as_uri())


def fill(store: CheckpointStore, *spots: Spot) -> None:
    for spot in spots:
        store.save(spot, b"state", b"{}")


def test_racing_gangs_get_different_fences(store: CheckpointStore) -> None:
    """Each number is claimed once, and the highest one is known."""
    fences: list[int] = []
    threads = [Thread(target=lambda: fences.append(store.claim_fence(b"{}"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(fences) == list(range(1, 9))
    assert store.highest_fence() == 8


def test_a_newer_gang_wins_over_a_later_step(store: CheckpointStore) -> None:
    """An old gang that is only unreachable may write later steps: they do not count."""
    fill(store, Spot(1, 90), Spot(2, 20), Spot(2, 100))

    assert store.spots() == [Spot(2, 100), Spot(2, 20), Spot(1, 90)]


def test_a_step_without_manifest_does_not_exist(store: CheckpointStore) -> None:
    """The manifest is written last."""
    store.write("fence-1/step-5/state.safetensors", b"half")

    assert store.spots() == []
    assert store.load(Spot(1, 5)) is None


def test_pruning_spares_newer_gangs_and_claims(store: CheckpointStore, tmp_path: Path) -> None:
    """It removes old and unfinished steps of this and older fences, and leaves no empty folders."""
    store.claim_fence(b"{}")
    fill(store, Spot(1, 1), Spot(1, 2), Spot(2, 3), Spot(2, 4), Spot(3, 1))
    store.write("fence-1/step-9/state.safetensors", b"half")

    store.prune(own_fence=2, keep=2)

    assert store.spots() == [Spot(3, 1), Spot(2, 4), Spot(2, 3)]
    assert store.highest_fence() == 1
    assert not (tmp_path / "a b" / "run" / "fence-1" / "step-9").exists()


def test_what_exists_is_not_created_again(store: CheckpointStore) -> None:
    """The first writer wins."""
    assert store.create("baseline.json", b"first")
    assert not store.create("baseline.json", b"second")
    assert store.read("baseline.json") == b"first"


@pytest.mark.parametrize(
    ("interval", "stall", "due_after"),
    [
        pytest.param(None, 0.1, 120, id="automatic"),
        pytest.param(None, 3.0, 300, id="automatic-never-more-than-1-percent"),
        pytest.param(30.0, 3.0, 30, id="explicit-is-obeyed"),
        pytest.param(0.0, 3.0, 0, id="every-step"),
    ],
)
def test_when_a_checkpoint_is_due(interval: float | None, stall: float, due_after: float) -> None:
    """The interval runs from the start of the last save."""
    cadence = Cadence(interval, now=1000.0)
    cadence.record(2000.0, stall)

    assert cadence.is_due(2000.0 + due_after)
    assert not cadence.is_due(2000.0 + due_after - 1)
