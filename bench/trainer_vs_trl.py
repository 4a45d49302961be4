"""Steps per second and memory beside TRL's SFTTrainer, on the same work: LoRA in fp32 on the CPU, one and two ranks.

    make bench-trl             # or: python bench/trainer_vs_trl.py [--runs 5] [--models tiny,smollm2] [--ranks 1,2]

Both sides get the same tokens and labels in the same micro-batches, the same adapters and the same AdamW, without
evaluation, saving, logging and gradient checkpointing, one thread per rank. Ours is a whole run through the launcher
(rows are tokenized in the step); TRL gets its rows tokenized. Runs alternate; the table has medians. The first step is
left out. That both do the same work is shown by the loss of the first step.

A ratio of 0.97 or more is the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HARBOUR, MEASURED, Rank, base_config, launch_measured, machine, read_ranks

BAR = 0.97
MAX_LENGTH = 128
SEED = 42


@dataclass(frozen=True)
class Work:
    """What one run does."""

    model: str
    folder: Path
    """Of the base model."""
    ranks: int
    steps: int
    per_device: int = 2
    accumulation: int = 2

    @property
    def rows_per_step(self) -> int:
        """The global batch."""
        return self.per_device * self.accumulation * self.ranks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--models", default="tiny,smollm2")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--steps", type=int, default=0, help="of every run; default: 100 (tiny), 12 (smollm2)")
    parser.add_argument("--trl-worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trl_worker:
        train_with_trl(json.loads(Path(arguments.trl_worker).read_text()))
        return
    columns = ["model", "ranks", "ours, steps/s", "TRL, steps/s", "ratio", "CPU s per step and rank, ours / TRL"]
    columns += ["RSS per rank, ours / TRL", "first loss, ours / TRL"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    misses = []
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as scratch:
        for model in arguments.models.split(","):
            folder = find_model(model, Path(scratch))
            if folder is None:
                continue
            for ranks in map(int, arguments.ranks.split(",")):
                steps = arguments.steps or {"tiny": 100}.get(model, 12)
                ratio = compare(Work(model, folder, ranks, steps), arguments.runs, Path(scratch))
                misses += [f"{model}, {ranks} ranks"] * (ratio < BAR)
    print(f"\nMedian of {arguments.runs} alternating runs; {machine()}. Bar: a ratio of {BAR} or more.")
    if misses:
        print(f"Below the bar: {'; '.join(misses)}.")


def find_model(name: str, scratch: Path) -> Path | None:
    """The folder of a base model; None, with a line that says how to get it, where it is not here."""
    if name == "tiny":
        from trainer.tiny import make_model

        make_model(scratch / "tiny")
        return scratch / "tiny"
    from e2e.cluster.paths import cache_root
    from e2e.demo_model import MODEL_NAME

    folder = cache_root() / "models" / MODEL_NAME
    if (folder / "model.safetensors").is_file():
        return folder
    print(f"{MODEL_NAME} is left out: not in {folder}; `python -m e2e.demo_model` makes it", file=sys.stderr)
    return None


def compare(work: Work, runs: int, scratch: Path) -> float:
    """One line of the table; the ratio."""
    ours, theirs = [], []
    for number in range(runs):
        folder = scratch / f"{work.model}-{work.ranks}-{number}"
        ours.append(run_ours(work, folder / "ours"))
        theirs.append(run_trl(work, folder / "trl"))
    speeds = [statistics.median(run[0].steps_per_second for run in side) for side in (ours, theirs)]
    cpu = [statistics.median(run[0].cpu_per_step for run in side) for side in (ours, theirs)]
    resident = [max(rank.peak_resident for run in side for rank in run) / 2**20 for side in (ours, theirs)]
    first = [side[0][0].losses[0] for side in (ours, theirs)]
    if abs(first[0] - first[1]) > 1e-3:
        raise SystemExit(f"the sides do different work: first losses {first[0]:.5f} and {first[1]:.5f}")
    ratio = speeds[0] / speeds[1]
    losses = " / ".join(f"{loss:.5f}" for loss in first)
    print(
        f"| {work.model} | {work.ranks} | {speeds[0]:.3f} | {speeds[1]:.3f} | {ratio:.3f} "
        f"| {cpu[0]:.3f} / {cpu[1]:.3f} | {resident[0]:.0f} / {resident[1]:.0f} MiB | {losses} |",
        flush=True,
    )
    return ratio


# --- ours ----------------------------------------------------------------------------------------------------


def run_ours(work: Work, folder: Path) -> list[Rank]:
    """A whole run through the launcher."""
    launch = launch_measured(our_config(work, folder), folder)
    ending = launch.end(1800)
    assert ending.code == 0, f"{ending.code}: {ending.termination.message}\n{ending.stderr[-2000:]}"
    ranks = read_ranks(folder)
    assert len(ranks) == work.ranks
    return ranks


def our_config(work: Work, folder: Path) -> dict[str, Any]:
    """In fp32, the longest row declared as prepare would."""
    rows = sum(1 for line in HARBOUR.read_text(encoding="utf-8").splitlines() if line.strip())
    config = base_config(
        folder,
        work.folder,
        HARBOUR,
        rows=rows,
        max_length=MAX_LENGTH,
        ranks=work.ranks,
        device="cpu",
        max_steps=work.steps,
        per_device_train_batch_size=work.per_device,
        gradient_accumulation_steps=work.accumulation,
        seed=SEED,
    )
    dataset = open_rows(work)
    config["data"]["longestRowTokens"] = max(len(dataset.row(row).ids) for row in range(rows))
    return config


def open_rows(work: Work) -> Any:
    """As the trainer reads them."""
    from finetune_trainer.data import Dataset
    from finetune_trainer.model import load_tokenizer

    return Dataset(HARBOUR, load_tokenizer(work.folder), MAX_LENGTH)


# --- TRL -----------------------------------------------------------------------------------------------------


def run_trl(work: Work, folder: Path) -> list[Rank]:
    """A process per rank under torchrun, as its documentation has it."""
    folder.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_in_our_order(work)))
    order = folder / "work.json"
    order.write_text(json.dumps({**vars(work), "folder": str(work.folder), "rows": str(rows), "out": str(folder)}))
    head = [sys.executable]
    if work.ranks > 1:
        head += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={work.ranks}"]
    done = subprocess.run(
        [*head, __file__, "--trl-worker", str(order)],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"}
        | {"GLOO_SOCKET_IFNAME": "lo", "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(MEASURED)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = read_ranks(folder)
    assert len(ranks) == work.ranks, "TRL trained with another number of ranks"
    return ranks


def rows_in_our_order(work: Work) -> list[dict[str, list[int]]]:
    """Tokens and labels such that reading on, micro-batch by micro-batch and rank by rank, gives our micro-batches."""
    from finetune_trainer.sampler import Sampler

    dataset = open_rows(work)
    sampler = Sampler(len(dataset), SEED)
    ordered = []
    for step in range(work.steps):
        position = step * work.rows_per_step
        shares = [
            sampler.micro_batches(position, work.rows_per_step, work.per_device, rank, work.ranks)
            for rank in range(work.ranks)
        ]
        for micro_step in range(work.accumulation):
            ordered += [dataset.row(item) for share in shares for item in share[micro_step] if item is not None]
    return [{"input_ids": row.ids, "labels": row.labels} for row in ordered]


def train_with_trl(work: dict[str, Any]) -> None:
    """One rank of TRL; writes what our ranks write."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from sitecustomize import peak_resident_bytes
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When steps end."""

        def __init__(self) -> None:
            self.ends: list[float] = []
            self.cpu_ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.monotonic())
            self.cpu_ends.append(time.process_time())

    out = Path(work["out"])
    clock = Clock()
    settings = SFTConfig(
        output_dir=str(out / "output"),
        max_steps=work["steps"],
        per_device_train_batch_size=work["per_device"],
        gradient_accumulation_steps=work["accumulation"],
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=MAX_LENGTH,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        ddp_backend="gloo" if work["ranks"] > 1 else None,
        seed=SEED,
        logging_strategy="steps",
        logging_first_step=True,
        logging_steps=10**9,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(work["folder"], dtype=torch.float32),
        settings,
        train_dataset=load_dataset("json", data_files=work["rows"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(work["folder"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"),
        callbacks=[clock],
    )
    # On the CPU a missing setting leaves every rank alone, without a word.
    assert trainer.accelerator.num_processes == work["ranks"], "the ranks of TRL train alone"
    assert trainer.args.per_device_train_batch_size == work["per_device"]
    torch.manual_seed(SEED)
    trainer.train()
    assert len(clock.ends) == work["steps"]
    known = {
        "step_ends": clock.ends,
        "cpu_ends": clock.cpu_ends,
        "tokens": [],
        "polls": [],
        "stalls": [],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "strategy": "TRL",
        "peak_resident": peak_resident_bytes(),
        "peak_allocated": 0,
        "peak_reserved": 0,
    }
    (out / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(known))


if __name__ == "__main__":
    main()
