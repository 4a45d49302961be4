"""What the trainer's benches share: a real run with clocks in it, models, and the state of the machine."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image"), str(ROOT / "tests")]

from finetune_trainer.fingerprint import fingerprint_model  # noqa: E402
from trainer.tiny import Launch, free_port  # noqa: E402

MEASURED = ROOT / "bench" / "measured"
HARBOUR = ROOT / "examples" / "data" / "harbour.jsonl"


@dataclass(frozen=True)
class Rank:
    """What ``measured/sitecustomize.py`` noted of one rank."""

    step_ends: list[float]
    cpu_ends: list[float]
    """CPU time of the process at the end of every step."""
    tokens: list[int]
    polls: list[float]
    stalls: list[float]
    losses: list[float]
    strategy: str
    peak_resident: int
    peak_allocated: int
    peak_reserved: int

    @property
    def steps_per_second(self) -> float:
        """Without the first step, which allocates and warms up."""
        return (len(self.step_ends) - 1) / (self.step_ends[-1] - self.step_ends[0])

    @property
    def cpu_per_step(self) -> float:
        """CPU seconds, all threads, without the first step: hardly depends on what else the machine does."""
        return (self.cpu_ends[-1] - self.cpu_ends[0]) / (len(self.cpu_ends) - 1)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks, without the first step."""
        return sum(self.tokens[1:]) / (self.step_ends[-1] - self.step_ends[0])


def launch_measured(config: dict[str, Any], folder: Path) -> Launch:
    """A real launcher whose ranks leave their clocks in ``folder``."""
    path = os.pathsep.join([str(MEASURED), str(ROOT / "trainer_image")])
    return Launch(config, folder, PYTHONPATH=path, FINETUNE_MEASURE=str(folder))


def read_ranks(folder: Path) -> list[Rank]:
    """In the order of ranks; empty where none came as far as training."""
    files = sorted(folder.glob("rank-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    return [Rank(**json.loads(file.read_text())) for file in files]


def make_llama(
    folder: Path,
    *,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    vocabulary: int,
    dtype: str,
    tied: bool = False,
) -> None:
    """A Llama with random weights and the tests' byte-level tokenizer; nothing is downloaded."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.tiny import make_model

    make_model(folder)  # for its tokenizer; the weights are overwritten
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=max(1, heads // 4),
                max_position_embeddings=8192,
                tie_word_embeddings=tied,
            )
        )
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)


def base_config(
    folder: Path, model: Path, data: Path, *, rows: int, max_length: int, ranks: int, device: str, **training: Any
) -> dict[str, Any]:
    """A TrainConfig in JSON keys: LoRA r 8 on all linear layers, no evaluation, no checkpoint but the last."""
    settings: dict[str, Any] = {
        "max_steps": 10,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "precision": "fp32",
    } | training
    per_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * ranks
    settings.setdefault("global_batch_size", per_step)
    from finetune_trainer.config import TrainConfig

    raw = {
        "job": {"namespace": "bench", "name": "bench"},
        "run": {"digest": "a" * 64},
        "attempt": 1,
        "topology": {"nodes": 1, "processes_per_node": ranks, "device": device, "master_port": free_port()},
        "model": {"uri": model.as_uri(), "source_uri": model.as_uri(), "digest": fingerprint_model(model)},
        "data": {
            "train_uri": data.as_uri(),
            "train_rows": rows,
            "eval_rows": 0,
            "digest": "b" * 64,
            "max_length": max_length,
        },
        "method": {"lora": {"r": 8, "lora_alpha": 16, "target_modules": ["all-linear"]}},
        "training": settings,
        "checkpoint": {"uri": (folder / "checkpoints").as_uri(), "interval_seconds": 3600},
        "output": {"uri": (folder / "output").as_uri()},
    }
    return TrainConfig.model_validate(raw).model_dump(mode="json", by_alias=True, exclude_none=True)


def machine() -> str:
    """One line for the foot of a table: cores and load, by which figures are to be judged."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    import torch

    return f"{os.cpu_count()} cores, load average {load} (1, 5, 15 min), torch {torch.__version__}"
