"""How pods end when something is wrong: exit code, cause, and a termination message that says what to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.store import CheckpointStore
from trainer.tiny import Assets, Launch, a_config, free_port
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]

Change = Callable[[dict[str, Any]], object]


def endless_baseline(config: dict[str, Any], limit: float) -> None:
    """More text than the limit allows, on any machine."""
    config["evaluation"] = {"prompts": ["Tell me a long story."] * 8, "maxNewTokens": 100_000}
    config["phaseLimits"]["evaluate"] = limit


@pytest.mark.parametrize(
    ("change", "code", "cause", "field"),
    [
        pytest.param(
            lambda config: config["training"].update(learningRate=-1.0),
            64,
            "UserError",
            "spec.training.learningRate",
            id="field-out-of-bounds",
        ),
        pytest.param(
            lambda config: config["training"].update(gradientAccumulationSteps=9),
            64,
            "UserError",
            "spec.training.gradientAccumulationSteps",
            id="batch-arithmetic",
        ),
        pytest.param(
            lambda config: config["method"]["lora"].update(targetModules=["nonsense"]),
            64,
            "UserError",
            "spec.method.lora.targetModules",
            id="unknown-modules",
        ),
        pytest.param(
            lambda config: config["model"].update(digest="0" * 64),
            65,
            "UserError",
            "spec.model",
            id="another-model",
        ),
        pytest.param(lambda config: endless_baseline(config, limit=0.1), 78, "Hang", None, id="phase-too-long"),
        pytest.param(
            lambda config: config["training"].update(learningRate=1e30, warmupSteps=0),
            79,
            "NonFinite",
            None,
            id="loss-explodes",
        ),
        pytest.param(lambda config: config["topology"].update(device="cuda"), 69, "NoCuda", None, id="no-gpu"),
    ],
)
def test_what_is_wrong_is_said(
    assets: Assets, tmp_path: Path, zygote: Zygote, change: Change, code: int, cause: str, field: str | None
) -> None:
    """The field of the FineTuneJob where the user can mend it, the cause where not."""
    config = a_config(assets, tmp_path)
    change(config)

    ending = Launch(config, tmp_path, zygote=zygote, CUDA_VISIBLE_DEVICES="").end()
    termination = ending.termination

    assert (ending.code, termination.exit_code, termination.cause) == (code, code, cause)
    assert termination.message
    assert (termination.fault.field if termination.fault else None) == field
    assert ending.stray == []
    assert ("Current thread" in ending.stderr or "Thread 0x" in ending.stderr) == (code == 78)


def test_a_configuration_that_is_not_json_ends_with_64(tmp_path: Path) -> None:
    """Even then there is a valid last word."""
    ending = Launch("{oops", tmp_path).end()

    assert (ending.code, ending.termination.cause) == (64, "UserError")


def test_without_a_configuration_one_line_says_what_to_do(tmp_path: Path) -> None:
    """Not a traceback."""
    missing = str(tmp_path / "missing.json")
    ending = Launch({}, tmp_path, FINETUNE_CONFIG=missing).end()

    assert (ending.code, ending.termination.cause) == (64, "UserError")
    (line,) = ending.stderr.splitlines()
    assert f"{missing} cannot be read: No such file or directory; mount" in line


def test_sigterm_before_the_workers_are_ready_is_a_preemption(assets: Assets, tmp_path: Path) -> None:
    """The handler is installed before the slow imports."""
    launch = Launch(a_config(assets, tmp_path, ranks=2), tmp_path)
    launch.wait_until(lambda: len(launch.workers()) == 2, "two workers")
    workers = launch.workers()
    launch.terminate()
    ending = launch.end(seconds=20)

    assert (ending.code, ending.termination.outcome) == (75, "Preempted")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_no_worker_outlives_the_launcher(assets: Assets, tmp_path: Path) -> None:
    """SIGKILL of the pod's first process takes the ranks with it."""
    launch = Launch(a_config(assets, tmp_path, ranks=2), tmp_path)
    launch.wait_until(lambda: len(launch.workers()) == 2, "two workers")
    workers = launch.workers()
    time.sleep(1.5)
    os.kill(launch.process.pid, signal.SIGKILL)
    launch.process.wait(5)

    deadline = time.monotonic() + 10
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)


def test_pods_of_a_gang_stop_together_and_notice_a_death(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """SIGTERM to one pod stops both in order; when one vanishes, the other is a victim (76) that says so."""
    config = a_config(assets, tmp_path, ranks=2, max_steps=2000)
    config["topology"] |= {"nodes": 2, "processesPerNode": 1}
    store = CheckpointStore(config["checkpoint"]["uri"])

    pods = start_pods(config, tmp_path / "stop", zygote)
    pods[0].wait_until(lambda: bool(store.spots()), "a checkpoint")
    pods[1].terminate()
    for pod in pods:
        ending = pod.end(seconds=20)
        assert (ending.code, ending.termination.outcome) == (75, "Preempted")
    stopped_at = store.spots()[0].step

    pods = start_pods(
        config | {"topology": config["topology"] | {"masterPort": free_port()}}, tmp_path / "death", zygote
    )
    pods[0].wait_until(lambda: store.spots()[0].step > stopped_at, "a step after resuming")
    pods[1].process.kill()
    victim = pods[0].end(seconds=30)

    assert (victim.code, victim.termination.cause) == (76, "PeerLost")
    assert (victim.termination.rank, victim.termination.message) == (1, "rank 1 (node 1) has gone away without a word")
    assert victim.termination.checkpoint is not None
    assert victim.termination.checkpoint.step > stopped_at


def start_pods(config: dict[str, Any], folder: Path, zygote: Zygote) -> list[Launch]:
    """The two pods of a gang, each with its own launcher."""
    return [Launch(config, folder / str(index), zygote=zygote, JOB_COMPLETION_INDEX=str(index)) for index in range(2)]


def test_sigterm_while_rank_0_generates_stops_every_rank(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """The other ranks wait for the answers, and still all agree within a token."""
    config = a_config(assets, tmp_path, ranks=2)
    config["evaluation"] = {"prompts": ["Tell me a long story."] * 8, "maxNewTokens": 100_000}
    launch = Launch(config, tmp_path, zygote=zygote)
    launch.wait_until(lambda: '"baseline"' in (tmp_path / "stdout").read_text(), "the baseline")
    time.sleep(1.0)
    launch.terminate()
    ending = launch.end(seconds=20)

    assert (ending.code, ending.termination.message) == (75, "stopped by SIGTERM after step 0")


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that waits for a lazy process 1."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
