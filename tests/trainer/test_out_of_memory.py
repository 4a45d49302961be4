"""What does not fit into memory fails before step 1, and says where; what was not foreseen says its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.sampler import Sampler
from finetune_trainer.store import CheckpointStore
from trainer.probes import in_ranks, limit_memory
from trainer.tiny import ROWS, Assets, Ending, Launch, a_config, make_rows, write_rows
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(300)]

LONG = 2048
"""Tokens of a sequence; a micro-batch of so long ones needs far more than ``MEGABYTES``."""
PER_DEVICE = 64
MEGABYTES = "400"
"""Above what a worker has at its start; a run on short rows fits in."""
LONG_ROW = 3
STEPS = 5


def run(config: dict[str, Any], folder: Path, zygote: Zygote) -> Ending:
    """One rank with little memory."""
    return Launch(config, folder, zygote=zygote, **in_ranks(limit_memory, folder, megabytes=MEGABYTES)).end(120)


def long_config(assets: Assets, folder: Path) -> dict[str, Any]:
    """Two rows per step, in micro-batches with room for many, and sequences of ``LONG`` tokens are allowed."""
    config = a_config(assets, folder, max_steps=STEPS, global_batch_size=2, per_device_train_batch_size=PER_DEVICE)
    config["data"]["maxLength"] = LONG
    config["evaluation"]["prompts"] = []
    return config


def test_the_dry_step_finds_what_does_not_fit(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """All rows that come first are short, and still it fails at once: a longer one may come after hours."""
    config = long_config(assets, tmp_path)
    ending = run(config, tmp_path, zygote)
    termination, store = ending.termination, CheckpointStore(config["checkpoint"]["uri"])

    assert (ending.code, termination.cause, termination.rank) == (77, "OutOfMemory", 0), ending.stderr[-3000:]
    assert termination.memory is not None
    assert (termination.memory.phase, termination.memory.longest_tokens) == ("dry step", LONG)
    assert termination.memory.host_peak_bytes is not None
    assert termination.memory.host_peak_bytes > 100 * 2**20
    assert (store.spots(), termination.checkpoint) == ([], None)
    assert not termination.step


def test_short_rows_fit_into_the_same_memory(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """Prepare knows the longest row: no step is rehearsed at a length that never comes."""
    config = long_config(assets, tmp_path)
    config["data"]["longestRowTokens"] = 60

    assert run(config, tmp_path, zygote).code == 0


def test_a_later_step_that_does_not_fit_is_named(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """With its longest sequence, and with the checkpoint of the step before."""
    config = long_config(assets, tmp_path)
    rows = make_rows(ROWS)
    rows[LONG_ROW]["messages"][1]["content"] = "!" * LONG
    config["data"] |= {"trainUri": write_rows(tmp_path / "rows.jsonl", rows), "longestRowTokens": 60}
    order = Sampler(ROWS, config["training"]["seed"])
    step = next(
        step
        for step in range(1, STEPS + 1)
        if any(LONG_ROW in rows for rows in order.micro_batches((step - 1) * 2, 2, PER_DEVICE, 0, 1))
    )
    ending = run(config, tmp_path, zygote)
    termination = ending.termination

    assert (ending.code, termination.cause) == (77, "OutOfMemory"), ending.stderr[-3000:]
    assert termination.memory is not None
    assert (termination.memory.phase, termination.memory.longest_tokens) == (f"step {step}", LONG)
    assert step > 1, "choose another row"
    assert termination.step == step - 1
    assert termination.checkpoint is not None
    assert termination.checkpoint.step == step - 1
