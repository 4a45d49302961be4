"""Full fine-tuning: what is published is a model like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.messages import Progress
from finetune_trainer.result import AdapterManifest
from finetune_trainer.store import CheckpointStore
from trainer.probes import go, in_ranks, is_reached, pause
from trainer.tiny import EVAL_ROWS, Assets, Launch, a_config
from trainer.zygote import Zygote

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(300)]


def test_a_model_trained_whole_is_published_whole(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """Interrupted once: the baseline is that of the base model, though the second attempt has it no more."""
    config = a_config(assets, tmp_path, learning_rate=0.002)
    config["method"] = {"full": {}}
    config["evaluation"]["prompts"] = []
    store = CheckpointStore(config["checkpoint"]["uri"])
    first = Launch(config, tmp_path / "first", zygote=zygote, **in_ranks(pause, tmp_path / "probe", moment="save"))
    first.wait_until(lambda: is_reached(tmp_path / "probe", 1), "the save of step 3")
    first.terminate()
    first.wait_until(lambda: first.stderr.count("SIGTERM received") == 2, "the signal, in launcher and worker")
    go(tmp_path / "probe")
    stopped = first.end(60)
    baseline = store.read("baseline.json")

    second = Launch(config | {"attempt": 2}, tmp_path / "second", zygote=zygote).end(120)

    assert (stopped.code, second.code) == (75, 0), second.stderr[-3000:]
    resumed_from = [line.resumed_from_step for line in second.lines if isinstance(line, Progress)][-1]
    assert resumed_from is not None
    assert resumed_from >= 3
    assert store.read("baseline.json") == baseline
    metrics = AdapterManifest.model_validate_json(second.published("manifest.json")).metrics
    base_loss, _ = load_and_measure(assets.model, assets)
    trained_loss, texts = load_and_measure(second.output, assets)
    assert metrics["baseEvalLoss"] == pytest.approx(base_loss, abs=1e-5)
    assert metrics["evalLoss"] == pytest.approx(trained_loss, abs=1e-5)
    assert trained_loss < base_loss - 0.05
    assert texts == load_and_measure(assets.model, assets)[1]
    assert json.loads(second.published("config.json"))["dtype"] == "float32"


def test_without_its_baseline_a_resumed_run_compares_nothing(assets: Assets, tmp_path: Path, zygote: Zygote) -> None:
    """The base model is gone by then: a wrong number would be worse than none."""
    config = a_config(assets, tmp_path, learning_rate=0.002, max_steps=2)
    config["method"] = {"full": {}}
    config["evaluation"]["prompts"] = []
    assert Launch(config, tmp_path / "first", zygote=zygote).end(120).code == 0
    CheckpointStore(config["checkpoint"]["uri"]).delete("baseline.json")
    shutil.rmtree(tmp_path / "output")

    second = Launch(config | {"attempt": 2}, tmp_path / "second", zygote=zygote).end(120)

    assert second.code == 0
    assert any("baseline.json is gone" in getattr(line, "message", "") for line in second.lines)
    metrics = AdapterManifest.model_validate_json(second.published("manifest.json")).metrics
    assert "baseEvalLoss" not in metrics
    assert "evalLoss" in metrics


def load_and_measure(folder: Path, assets: Assets) -> tuple[float, list[Any]]:
    """Held-out loss and the rendered rows, by what transformers finds in the folder and nothing else."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_trainer.data import Dataset
    from finetune_trainer.model import local_path

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    dataset = Dataset(local_path(assets.eval_uri), tokenizer, 64)
    total, tokens = 0.0, 0
    for row in range(EVAL_ROWS):
        batch = dataset.batch([row])
        with torch.no_grad():
            total += float(model(input_ids=batch.input_ids, labels=batch.labels).loss) * batch.label_tokens
        tokens += batch.label_tokens
    return total / tokens, [dataset.batch([row]).input_ids.tolist() for row in range(EVAL_ROWS)]
