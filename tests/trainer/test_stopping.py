"""SIGTERM at every phase, to one pod or to all: the gang ends with 75 in time, and with the last completed step saved.

Ranks wait at the named moment until the signal has reached them, so a busy machine changes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.store import CheckpointStore, Spot
from trainer.probes import MICRO_STEPS, go, in_ranks, is_reached, pause
from trainer.tiny import Assets, Ending, Launch, a_config, free_port
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(300)]

STEPS = 5
LONG_STEPS = 3
"""Of runs with many micro-steps."""
PROMISED_SECONDS = 15.0


@dataclass(frozen=True)
class Moment:
    """When the signal comes, and what must be in the store afterwards."""

    name: str
    step: int | None
    """The last completed step; None: training has not begun."""
    ranks: int = 2
    """How many ranks come by."""


LOAD = Moment("load", None)
BASELINE = Moment("baseline", None)
DRY_STEP = Moment("dry step", None)
ACCUMULATION = Moment("accumulation", 2)
# The writer of step 3 waits, before the manifest; the ranks are in step 4.
SAVE = Moment("save", 3, ranks=1)
EVALUATE = Moment("evaluate", STEPS)
PUBLISH = Moment("publish", STEPS)
UPLOAD = Moment("upload", STEPS, ranks=1)


class Stopped:
    """A gang of two pods with a rank each that was told to stop at a moment."""

    def __init__(
        self, assets: Assets, folder: Path, zygote: Zygote, strategy: str, moment: Moment, *, told: list[int]
    ) -> None:
        """``told``: the pods that get the signal."""
        self.config = two_pods(assets, folder, strategy, MICRO_STEPS if moment is ACCUMULATION else 2)
        self.store = CheckpointStore(self.config["checkpoint"]["uri"])
        probe = in_ranks(pause, folder / "probe", moment=moment.name)
        pods = start(self.config, folder / "pods", zygote, **probe)
        pods[0].wait_until(lambda: is_reached(folder / "probe", moment.ranks), f"the {moment.name}")
        workers = [worker for pod in pods for worker in pod.workers()]
        for number in told:
            pods[number].terminate()
        for number in told:
            wait_for_the_signal(pods[number], in_worker=number < moment.ranks)
        started = time.monotonic()
        go(folder / "probe")
        self.endings = [pod.end(60) for pod in pods]
        self.seconds = time.monotonic() - started
        self.orphans = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        assert len(workers) == 2


def wait_for_the_signal(pod: Launch, *, in_worker: bool) -> None:
    """Until the launcher, and its worker, have heard it; a worker in a collective hears it when that is over."""
    pod.wait_until(lambda: pod.stderr.count("SIGTERM received") >= 1 + in_worker, "the signal")
    if not in_worker:
        time.sleep(0.5)  # the launcher passes it on within a tenth of a second


def two_pods(assets: Assets, folder: Path, strategy: str, micro_steps: int) -> dict[str, Any]:
    config = a_config(
        assets,
        folder,
        ranks=2,
        max_steps=STEPS if micro_steps < MICRO_STEPS else LONG_STEPS,
        global_batch_size=2 * micro_steps,
        per_device_train_batch_size=1,
    )
    config["topology"] |= {"nodes": 2, "processesPerNode": 1}
    config["distributed"] = {"strategy": strategy, "shardAcrossNodes": strategy == "FSDP"}
    config["method"]["lora"]["loraDropout"] = 0.1
    config["evaluation"]["prompts"] = []
    return config


def start(config: dict[str, Any], folder: Path, zygote: Zygote, **probe: str) -> list[Launch]:
    return [
        Launch(config, folder / str(pod), zygote=zygote, JOB_COMPLETION_INDEX=str(pod), **probe)
        for pod in range(config["topology"]["nodes"])
    ]


@pytest.mark.parametrize(
    ("strategy", "moment", "told"),
    [
        pytest.param(strategy, moment, told, id=f"{strategy}-{moment.name.replace(' ', '-')}-{who}")
        for number, moment in enumerate((LOAD, BASELINE, DRY_STEP, SAVE, EVALUATE, PUBLISH))
        for strategy, who, told in (
            ("DDP", *(("one", [1]) if number % 2 else ("all", [0, 1]))),
            ("FSDP", *(("all", [0, 1]) if number % 2 else ("one", [1]))),
        )
    ],
)
def test_sigterm_saves_the_last_completed_step(
    assets: Assets, tmp_path: Path, zygote: Zygote, strategy: str, moment: Moment, told: list[int]
) -> None:
    """All pods stop, also those that were not told; nobody is left behind."""
    stopped = Stopped(assets, tmp_path, zygote, strategy, moment, told=told)

    assert_stopped(stopped, moment)


def assert_stopped(stopped: Stopped, moment: Moment) -> None:
    main = stopped.endings[0].termination
    spots = stopped.store.spots()

    assert [ending.code for ending in stopped.endings] == [75, 75], stopped.endings[0].stderr[-3000:]
    assert {ending.termination.outcome for ending in stopped.endings} == {"Preempted"}
    assert all("SIGTERM" in ending.termination.message for ending in stopped.endings)
    assert stopped.seconds < PROMISED_SECONDS
    assert stopped.orphans == []
    assert not (stopped.endings[0].output / "manifest.json").exists()
    if moment.step is None:
        assert (spots, main.checkpoint) == ([], None)
        assert not main.step
    else:
        assert main.checkpoint is not None
        assert main.step == main.checkpoint.step == spots[0].step
        if moment.ranks == 2:
            assert main.step == moment.step
        else:  # the ranks do not wait, only the writer
            assert moment.step <= main.step <= STEPS


@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_sigterm_drops_what_a_step_has_accumulated(
    assets: Assets, tmp_path: Path, zygote: Zygote, strategy: str
) -> None:
    """In the sixth of 16 micro-steps of step 3; the run goes on from step 2, to the last bit as if left alone."""
    stopped = Stopped(assets, tmp_path / "stopped", zygote, strategy, ACCUMULATION, told=[1])
    assert_stopped(stopped, ACCUMULATION)

    resumed = run_to_the_end(stopped.config | {"attempt": 2}, tmp_path / "resumed", zygote)
    whole = run_to_the_end(two_pods(assets, tmp_path / "whole", strategy, MICRO_STEPS), tmp_path / "whole", zygote)

    assert resumed.losses == whole.losses
    assert len(whole.losses) == LONG_STEPS


def run_to_the_end(config: dict[str, Any], folder: Path, zygote: Zygote) -> Ending:
    """What pod 0 says."""
    config["topology"] |= {"masterPort": free_port()}
    endings = [pod.end(120) for pod in start(config, folder, zygote)]
    assert [ending.code for ending in endings] == [0, 0], endings[0].stderr[-3000:]
    return endings[0]


def test_sigterm_during_the_upload_comes_too_late(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """The result is published whole, and the gang says so."""
    stopped = Stopped(assets, tmp_path, zygote, "FSDP", UPLOAD, told=[0, 1])

    assert [ending.code for ending in stopped.endings] == [0, 0]
    assert stopped.seconds < PROMISED_SECONDS
    assert stopped.orphans == []
    assert stopped.endings[0].termination.result is not None
    assert len(stopped.endings[0].losses) == STEPS


def test_an_older_gang_takes_nothing_from_a_newer_one(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """The older, sharded, was writing when the newer came: it finishes, prunes its own, and ends with 75."""
    config = two_pods(assets, tmp_path, "FSDP", 2)
    config["topology"] |= {"nodes": 1, "processesPerNode": 2}
    store = CheckpointStore(config["checkpoint"]["uri"])
    probe = in_ranks(pause, tmp_path / "probe", moment="save")
    (older,) = start(config, tmp_path / "older", zygote, **probe)
    older.wait_until(lambda: is_reached(tmp_path / "probe", 1), "a save in progress")

    newer_config = config | {"attempt": 2, "topology": config["topology"] | {"masterPort": free_port()}}
    (newer,) = start(newer_config, tmp_path / "newer", zygote)
    finished = newer.end(120)
    theirs = [spot for spot in store.spots() if spot.fence == 2]
    files = {path for path in store.list() if path.startswith("fence-2/")}
    published = finished.published("manifest.json")
    go(tmp_path / "probe")
    fenced_off = older.end(60)

    assert finished.code == 0
    assert (fenced_off.code, fenced_off.termination.outcome) == (75, "Preempted")
    assert "newer" in fenced_off.termination.message
    assert theirs == [Spot(2, STEPS), Spot(2, STEPS - 1)]
    assert {path for path in store.list() if path.startswith("fence-2/")} == files
    assert finished.published("manifest.json") == published
    assert max(spot.step for spot in store.spots() if spot.fence == 1) == 3
