"""Whole runs: real launchers, real ranks, a tiny model.

One launch costs 5 to 10 s, nearly all of it imports, so a test asserts everything that its launches can show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.messages import PhaseLine, Progress, PublishedResult, WarningLine
from finetune_trainer.result import AdapterManifest
from finetune_trainer.store import CheckpointStore
from trainer.tiny import EVAL_ROWS, Assets, Ending, Launch, a_config
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def uneven(assets: Assets, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> tuple[dict[str, Any], Ending]:
    """An uninterrupted run of one rank whose global batch two ranks do not divide."""
    folder = tmp_path_factory.mktemp("uneven")
    config = a_config(assets, folder, max_steps=STEPS, global_batch_size=5)
    return config, Launch(config, folder, zygote=zygote).end()


STEPS = 40
"""Enough that an interruption after a few steps comes before the end, on a busy machine too."""


def test_a_run_says_what_it_did(uneven: tuple[dict[str, Any], Ending]) -> None:
    """Phases in order, progress to the last step, one result; nothing else on stdout."""
    config, ending = uneven
    lines = ending.lines
    progress = [line for line in lines if isinstance(line, Progress)]

    assert (ending.code, ending.stray) == (0, [])
    assert [line.phase for line in lines if isinstance(line, PhaseLine)] == [
        "rendezvous",
        "load",
        "baseline",
        "train",
        "evaluate",
        "publish",
    ]
    assert (progress[-1].step, progress[-1].total_steps, progress[-1].epoch) == (
        STEPS,
        STEPS,
        pytest.approx(STEPS * 5 / 10),
    )
    assert progress[-1].checkpoint is not None
    assert progress[-1].checkpoint.step == STEPS
    assert all(line.resumed_from_step is None for line in progress)
    assert isinstance(lines[-1], PublishedResult)
    assert ending.termination.outcome == "Succeeded"
    assert ending.termination.result == lines[-1]
    assert (ending.termination.strategy, ending.termination.warning) == (progress[-1].strategy, None)
    assert lines[-1].uri == config["output"]["uri"]


def test_the_published_adapter_carries_its_lineage(uneven: tuple[dict[str, Any], Ending]) -> None:
    """The manifest names base, data, run and every file; all of it is readable by others."""
    config, ending = uneven
    manifest = AdapterManifest.model_validate_json(ending.published("manifest.json"))

    assert manifest.base_model.source_uri == "hf://acme/tiny"
    assert manifest.base_model.digest == config["model"]["digest"]
    assert manifest.data_digest == config["data"]["digest"]
    assert manifest.run.digest == config["run"]["digest"]
    assert manifest.metrics["steps"] == STEPS
    assert manifest.metrics["evalLoss"] < manifest.metrics["baseEvalLoss"]
    assert [sample.prompt for sample in manifest.samples] == ["What is 2 plus 2?"]
    assert len(ending.losses) == STEPS
    assert json.loads(ending.published("adapter_config.json"))["base_model_name_or_path"] == "acme/tiny"
    assert "base_model" in ending.published("README.md")
    for name, file in manifest.files.items():
        path = ending.output / name
        assert (path.stat().st_size, path.stat().st_mode & 0o777) == (file.bytes, 0o644)


def test_plain_peft_reproduces_the_evaluation(assets: Assets, uneven: tuple[dict[str, Any], Ending]) -> None:
    """The folder is what ``PeftModel.from_pretrained`` expects, and scores what the manifest says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune_trainer.data import Dataset
    from finetune_trainer.model import load_tokenizer, local_path

    _, ending = uneven
    base = AutoModelForCausalLM.from_pretrained(assets.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(ending.output)).eval()
    dataset = Dataset(local_path(assets.eval_uri), load_tokenizer(assets.model), 64)
    loss_sum, tokens = 0.0, 0
    for row in range(EVAL_ROWS):
        batch = dataset.batch([row])
        with torch.no_grad():
            loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss_sum += float(loss) * batch.label_tokens
        tokens += batch.label_tokens

    expected = AdapterManifest.model_validate_json(ending.published("manifest.json")).metrics["evalLoss"]
    assert loss_sum / tokens == pytest.approx(expected, abs=1e-6)


def test_another_gang_continues_after_a_newer_one_was_seen(
    assets: Assets, tmp_path: Path, uneven: tuple[dict[str, Any], Ending], zygote: Zygote
) -> None:
    """One rank is fenced off, its newest checkpoint is damaged, two ranks finish: the same losses to 1e-5."""
    config = a_config(assets, tmp_path, max_steps=STEPS, global_batch_size=5)
    store = CheckpointStore(config["checkpoint"]["uri"])
    first = Launch(config, tmp_path / "first", zygote=zygote)
    wait_for_step(first, store, 3)
    fence = store.claim_fence(b"{}")
    fenced_off = first.end()

    assert (fenced_off.code, fenced_off.termination.outcome) == (75, "Preempted")
    assert "newer" in fenced_off.termination.message
    newest, older = store.spots()
    store.write(f"{newest.path}/state.safetensors", b"damaged")
    baseline = store.read("baseline.json")

    resumed = {**a_config(assets, tmp_path, ranks=2, max_steps=STEPS, global_batch_size=5), "attempt": 2}
    second = Launch(resumed, tmp_path / "second", zygote=zygote).end()

    assert second.code == 0
    assert second.losses == pytest.approx(uneven[1].losses, abs=1e-5)
    assert second.losses[: older.step] == uneven[1].losses[: older.step]
    progress = [line for line in second.lines if isinstance(line, Progress)]
    assert progress[-1].resumed_from_step == second.termination.resumed_from_step == older.step
    assert any("passed over" in line.message for line in second.lines if isinstance(line, WarningLine))
    assert store.spots()[0].fence == fence + 1
    assert store.read("baseline.json") == baseline
    metrics = AdapterManifest.model_validate_json(second.published("manifest.json")).metrics
    expected = AdapterManifest.model_validate_json(uneven[1].published("manifest.json")).metrics
    assert metrics["trainTokens"] == expected["trainTokens"]
    assert metrics["evalLoss"] == pytest.approx(expected["evalLoss"], abs=1e-5)


def test_two_ranks_equal_one_from_the_start(
    assets: Assets, tmp_path: Path, uneven: tuple[dict[str, Any], Ending], zygote: Zygote
) -> None:
    """The loss is normalised by the tokens of all ranks; rows of weight zero change nothing."""
    config = a_config(assets, tmp_path, ranks=2, max_steps=STEPS, global_batch_size=5)
    pair = Launch(config, tmp_path, zygote=zygote).end()

    assert config["training"]["gradientAccumulationSteps"] * 2 * 2 > 5
    assert pair.losses[:5] == pytest.approx(uneven[1].losses[:5], abs=1e-6)
    assert pair.losses == pytest.approx(uneven[1].losses, abs=1e-5)


def test_an_interrupted_run_equals_an_uninterrupted_one(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """SIGTERM, then a rank killed by the kernel, then damage: bitwise the same losses, with dropout."""
    reference = Launch(dropout_config(assets, tmp_path / "whole"), tmp_path / "whole", zygote=zygote).end()
    config = dropout_config(assets, tmp_path)
    store = CheckpointStore(config["checkpoint"]["uri"])

    first = Launch(config, tmp_path / "first", zygote=zygote)
    wait_for_step(first, store, 4)
    first.terminate()
    stopped = first.end(seconds=20)
    assert (stopped.code, stopped.termination.outcome) == (75, "Preempted")
    assert stopped.termination.checkpoint is not None
    assert stopped.termination.step == stopped.termination.checkpoint.step == store.spots()[0].step

    second = Launch(config | {"attempt": 2}, tmp_path / "second", zygote=zygote)
    wait_for_step(second, store, stopped.termination.checkpoint.step + 3)
    workers = second.workers()
    second.kill(workers[1])
    killed = second.end(seconds=30)
    assert (killed.code, killed.termination.cause) == (137, "Killed")
    assert killed.termination.checkpoint is not None
    assert (stopped.termination.resumed_from_step, killed.termination.resumed_from_step) == (
        None,
        stopped.termination.step,
    )
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)

    baseline = store.read("baseline.json")
    store.write("baseline.json", b"damaged")
    third = Launch(config | {"attempt": 3}, tmp_path / "third", zygote=zygote).end()
    assert third.code == 0
    assert any("measured again" in line.message for line in third.lines if isinstance(line, WarningLine))
    assert store.read("baseline.json") == baseline
    assert third.losses == reference.losses
    assert third.termination.result is not None
    assert reference.termination.result is not None
    assert third.termination.result.digest == reference.termination.result.digest


def dropout_config(assets: Assets, folder: Path) -> dict[str, Any]:
    """Two ranks that draw random numbers in every step."""
    config = a_config(assets, folder, ranks=2, max_steps=STEPS)
    config["method"]["lora"]["loraDropout"] = 0.1
    return config


def wait_for_step(launch: Launch, store: CheckpointStore, step: int) -> None:
    """Until a checkpoint of this step or a later one is complete."""
    launch.wait_until(lambda: any(spot.step >= step for spot in store.spots()), f"step {step}")


def test_a_half_precision_run_and_its_repetition(assets: Assets, tmp_path: Path) -> None:
    """bf16 base, fp32 adapters, gradient checkpointing, epochs, no held-out rows; again: the result is there."""
    config = a_config(
        assets,
        tmp_path,
        max_steps=None,
        num_train_epochs=1.0,
        precision="bf16",
        gradient_checkpointing=True,
        deterministic=False,
    )
    config["data"] |= {"evalRows": 0}
    del config["data"]["evalUri"]
    config["evaluation"]["prompts"] = []
    config["checkpoint"]["intervalSeconds"] = None

    first = Launch(config, tmp_path / "first").end()
    manifest = first.published("manifest.json")
    again = Launch(config | {"attempt": 2}, tmp_path / "again").end()

    assert first.code == again.code == 0
    assert len(first.losses) == 3
    assert first.losses[0] == pytest.approx(5.6, abs=0.2)
    assert first.losses[-1] < first.losses[0]
    assert {tensor["dtype"] for tensor in safetensors_header(first.output).values()} == {"F32"}
    assert "evalLoss" not in AdapterManifest.model_validate_json(manifest).metrics
    assert again.published("manifest.json") == manifest
    assert again.termination.result is not None
    assert [line.phase for line in again.lines if isinstance(line, PhaseLine)] == ["rendezvous"]


def safetensors_header(folder: Path) -> dict[str, dict[str, Any]]:
    """dtype and shape of every published tensor."""
    data = (folder / "adapter_model.safetensors").read_bytes()
    header: dict[str, dict[str, Any]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    return header
