"""How long a checkpoint holds up training, and how large it is: 40 M trainable parameters, two ranks.

    make bench-save            # or: python bench/save_stall.py [--parameters-millions 40]

For every strategy: a Llama of 32 small layers (448 trainable tensors, as many as LoRA on an 8B model has), one
optimizer step, then gathering three times. The first allocates the host buffers, the later ones reuse them; the slowest
of these counts. Writing happens in the background and is shown beside it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "trainer_image"), str(ROOT / "tests")]

CASES = [("DDP", 1), ("DDP", 2), ("FSDP", 2), ("ZeRO2", 2), ("ZeRO3", 2)]
HIDDEN, INNER, LAYERS = 256, 704, 32
PER_RANK = LAYERS * (4 * 2 * HIDDEN + 3 * (HIDDEN + INNER))
"""Trainable parameters for every unit of LoRA's rank."""


def main() -> None:
    """All cases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters-millions", type=float, default=40.0)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lora_rank = round(arguments.parameters_millions * 1e6 / PER_RANK)
    if arguments.worker:
        measure(*arguments.worker, lora_rank)
        return
    print("| strategy | ranks | trainable | stall | write | bytes per parameter | peak RSS of rank 0 |")
    print("|---|---|---|---|---|---|---|")
    for strategy, ranks in CASES:
        row = run(strategy, ranks, arguments.parameters_millions)
        print(
            f"| {strategy} | {ranks} | {row['parameters'] / 1e6:.1f} M | {max(row['stalls'][1:]):.2f} s "
            f"(first {row['stalls'][0]:.2f}) | {row['write']:.2f} s | {row['bytes'] / row['parameters']:.2f} "
            f"| {row['rss'] / 2**20:.0f} MiB |",
            flush=True,
        )


def run(strategy: str, ranks: int, millions: float) -> dict[str, Any]:
    """One case: a process per rank; rank 0's measurements."""
    from trainer.tiny import free_port

    port = str(free_port())
    command = [sys.executable, __file__, "--parameters-millions", str(millions), "--worker", strategy, port]
    workers = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(ranks)
    ]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    row: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return row


def measure(strategy_name: str, port: str, lora_rank: int) -> None:
    """One rank."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune_trainer.config import PhaseLimits, Topology, Training
    from finetune_trainer.state_file import StateFile
    from finetune_trainer.store import Store, sha256
    from finetune_trainer.strategies import replicate
    from finetune_trainer.world import join_world

    ranks = int(os.environ["WORLD_SIZE"])
    topology = Topology(nodes=1, processes_per_node=ranks, device="cpu", master_port=int(port))
    world = join_world(topology, PhaseLimits())
    training = Training(
        max_steps=1,
        learning_rate=1e-4,
        global_batch_size=ranks,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        precision="fp32",
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=lora_rank, target_modules="all-linear"))
    if strategy_name == "DDP":
        strategy = replicate(world)[0]
    elif strategy_name == "FSDP":
        from finetune_trainer.strategies.fsdp import FsdpStrategy

        strategy = FsdpStrategy(world, topology, shard_across_nodes=False, cpu_offload=False, full=False)
    else:
        from finetune_trainer.strategies.zero import ZeroStrategy

        strategy = ZeroStrategy(world, 2 if strategy_name == "ZeRO2" else 3, cpu_offload=False)
    wrapped = strategy.wrap(model, training)
    strategy.restore({})
    ids = torch.arange(16).unsqueeze(0)
    strategy.backward(wrapped(input_ids=ids, labels=ids, use_cache=False).loss / ranks, last=True)
    strategy.step(1e-4, 1.0)
    stalls = []
    for _ in range(4):
        world.sum(0.0)  # begin together
        started = time.monotonic()
        state = strategy.gather()
        stalls.append(time.monotonic() - started)
    if world.is_main:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            data = StateFile().lay_out(state)
            sha256(data)
            Store(Path(folder).as_uri()).write("state.safetensors", data)
            write = time.monotonic() - started
        parameters = sum(value.numel() for name, value in state.items() if name.startswith("param."))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"stalls": stalls, "write": write, "bytes": len(data), "parameters": parameters, "rss": rss}))
    world.sum(0.0)
    os._exit(0)


if __name__ == "__main__":
    main()
