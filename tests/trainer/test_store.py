"""Fences, conditional creation, pruning, finding the newest good checkpoint: in folders and on a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from finetune_trainer.checkpoint import find_newest_good
from finetune_trainer.config import TrainConfig
from finetune_trainer.saver import Cadence
from finetune_trainer.store import PIECE_BYTES, CheckpointStore, Spot, sha256
from trainer.tiny import PYTHON_PATH, Assets, a_config

LARGE = os.urandom(PIECE_BYTES) * 2 + b"and the rest"
"""Three pieces."""


@pytest.fixture
def store(store_uri: str) -> CheckpointStore:
    return CheckpointStore(store_uri)


def fill(store: CheckpointStore, *spots: Spot) -> None:
    for spot in spots:
        store.save(spot, b"state", b"{}")


def test_racing_gangs_get_different_fences(store: CheckpointStore, store_uri: str) -> None:
    """Each number is claimed once, and the highest one is known; each gang has a store of its own."""
    stores = [CheckpointStore(store_uri) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        fences = list(pool.map(lambda store: store.claim_fence(b"{}"), stores))

    assert sorted(fences) == list(range(1, 9))
    assert store.highest_fence() == 8


def test_racing_processes_get_different_fences(store: CheckpointStore, store_uri: str) -> None:
    """As the pods of two gangs do; each claims five times."""
    script = (
        "import sys; from finetune_trainer.store import CheckpointStore as Store; store = Store(sys.argv[1])\n"
        "print(*(store.claim_fence(b'{}') for _ in range(5)))"
    )
    gangs = [
        subprocess.Popen(
            [sys.executable, "-c", script, store_uri],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": PYTHON_PATH},
        )
        for _ in range(2)
    ]
    fences = [int(word) for gang in gangs for word in gang.communicate(timeout=60)[0].split()]

    assert sorted(fences) == list(range(1, 11))
    assert store.highest_fence() == 10


def test_a_newer_gang_wins_over_a_later_step(store: CheckpointStore) -> None:
    """An old gang that is only unreachable may write later steps: they do not count."""
    fill(store, Spot(1, 90), Spot(2, 20), Spot(2, 100))

    assert store.spots() == [Spot(2, 100), Spot(2, 20), Spot(1, 90)]


def test_a_step_without_manifest_does_not_exist(store: CheckpointStore) -> None:
    """The manifest is written last."""
    store.write("fence-1/step-5/state.safetensors", b"half")

    assert store.spots() == []
    assert store.load(Spot(1, 5)) is None


def test_pruning_spares_newer_gangs_and_claims(store: CheckpointStore, store_uri: str) -> None:
    """It removes old and unfinished steps of this and older fences, and leaves no empty folders."""
    store.claim_fence(b"{}")
    fill(store, Spot(1, 1), Spot(1, 2), Spot(2, 3), Spot(2, 4), Spot(3, 1))
    store.write("fence-1/step-9/state.safetensors", b"half")

    store.prune(own_fence=2, keep=2)

    assert store.spots() == [Spot(3, 1), Spot(2, 4), Spot(2, 3)]
    assert store.highest_fence() == 1
    assert not any("step-9" in path for path in store.list())
    assert not (Path(unquote(urlsplit(store_uri).path)) / "fence-1" / "step-9").exists()


def test_a_listing_of_several_pages_is_complete(store: CheckpointStore) -> None:
    """S3 answers with a thousand names at most; the newest checkpoint may be behind them."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda step: store.write(f"fence-1/step-{step}/manifest.json", b"{}"), range(1, 1051)))
    fill(store, Spot(2, 7))

    assert len(store.list()) == 1052
    assert store.spots()[0] == Spot(2, 7)


def test_what_exists_is_not_created_again(store: CheckpointStore) -> None:
    """The first writer wins."""
    assert store.create("baseline.json", b"first")
    assert not store.create("baseline.json", b"second")
    assert store.read("baseline.json") == b"first"


@pytest.mark.parametrize("data", [b"", b"x", LARGE[:PIECE_BYTES], LARGE], ids=["empty", "small", "one-piece", "three"])
def test_what_is_read_is_what_was_written(store: CheckpointStore, data: bytes) -> None:
    """Large objects travel in pieces, in both directions; it can be replaced, but not created again."""
    store.write("x", b"before")
    store.write("x", data)
    created = store.create("y", data)

    assert (store.read("x"), store.read("y")) == (data, data)
    assert store.sha256("x") == sha256(data)
    assert created
    assert not store.create("y", b"other")
    assert not store.create("y", LARGE[:-1])
    store.delete("x")
    store.delete("x")
    assert store.read("x") is None
    assert store.sha256("x") is None


def test_a_damaged_newest_checkpoint_is_passed_over(store: CheckpointStore, assets: Assets, tmp_path: Path) -> None:
    """The next one that verifies is taken; of a step whose state is gone nothing is left."""
    from finetune_trainer.checkpoint import CheckpointManifest, DataPosition

    config = TrainConfig.model_validate(a_config(assets, tmp_path))

    def manifest(step: int, state: bytes) -> bytes:
        return (
            CheckpointManifest(
                step=step,
                fence=1,
                attempt=1,
                world_size=1,
                run_digest=config.run.digest,
                model_digest=config.model.digest,
                data_digest=config.data.digest,
                position=DataPosition(epoch=0, consumed=step, rows=step),
                state_sha256=sha256(state),
                state_bytes=len(state),
            )
            .to_json()
            .encode()
        )

    for step in (1, 2, 3, 4):
        store.save(Spot(1, step), b"good", manifest(step, b"good"))
    store.write("fence-1/step-4/state.safetensors", b"half")
    store.delete("fence-1/step-3/state.safetensors")

    seen = []
    for spot, content, problem in find_newest_good(store, config):
        seen.append((spot.step, problem))
        if content is not None:
            break

    assert seen == [(4, "the state is damaged"), (3, "a file is missing"), (2, "")]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("interval", "stall", "due_after"),
    [
        pytest.param(None, None, 120, id="automatic-before-anything-is-known"),
        pytest.param(None, 0.1, 30, id="automatic-where-saving-is-cheap"),
        pytest.param(None, 3.0, 300, id="automatic-never-more-than-1-percent"),
        pytest.param(30.0, 3.0, 30, id="explicit-is-obeyed"),
        pytest.param(0.0, 3.0, 0, id="every-step"),
    ],
)
def test_when_a_checkpoint_is_due(interval: float | None, stall: float | None, due_after: float) -> None:
    """The interval runs from the start of the last save, which held up training for ``stall`` seconds."""
    cadence = Cadence(interval, now=2000.0)
    if stall is not None:
        cadence.record(2000.0, stall)

    assert cadence.is_due(2000.0 + due_after)
    assert not cadence.is_due(2000.0 + due_after - 1)
