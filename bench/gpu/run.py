"""What the trainer does on one GPU: speed, memory, save stall, resume, the 4-bit self-test, and running out of memory.

    pip install '.[trainer]'
    python bench/gpu/run.py [--size 1b | --model PATH_OR_HUB_ID] [--out FILE]        # or: make bench-gpu

Every row is a run through the real launcher with a real TrainConfig; attention is transformers' default (sdpa), AdamW
is fused, adapters have rank 16 on all linear layers. Without --model a Llama with random weights is made, so nothing is
downloaded. Writes one Markdown section. See bench/gpu/README.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import ROOT, base_config, launch_measured, make_llama, read_ranks

from finetune_trainer.messages import TrainTermination, WarningLine
from finetune_trainer.store import CheckpointStore
from trainer.tiny import Ending, Launch

NOT_RUN = "not run: no CUDA device"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "vocabulary": 512},
    "1b": {"hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "vocabulary": 128256, "tied": True},
    "3b": {"hidden": 3072, "inner": 8192, "layers": 28, "heads": 24, "vocabulary": 128256, "tied": True},
    "8b": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "vocabulary": 128256},
}
_PROBE = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "name": torch.cuda.get_device_name() if found else "",
    "bytes": torch.cuda.mem_get_info()[1] if found else 0,
    "capability": ".".join(map(str, torch.cuda.get_device_capability())) if found else "",
}))
"""


@dataclass(frozen=True)
class Point:
    """One speed measurement."""

    method: str
    batch: int
    sequence: int
    offloaded: bool = False
    """FSDP over a group of one rank, shards in host memory; else the model as it is."""
    checkpointing: bool = False


@dataclass
class Bench:
    """Where and on what to measure."""

    folder: Path
    model: Path
    device: str
    points: list[Point]
    steps: int
    resume_sequence: int
    data: dict[int, Path] = field(default_factory=dict)

    def config(self, name: str, *, sequence: int, method: str = "lora", **training: Any) -> dict[str, Any]:
        """LoRA or QLoRA in bf16 on rows that fill ``sequence`` tokens."""
        rows = 64
        if sequence not in self.data:
            path = self.folder / f"rows-{sequence}.jsonl"
            texts = [{"prompt": f"{row} ", "completion": f"{row * 7919:x} " * sequence} for row in range(rows)]
            path.write_text("".join(json.dumps(text) + "\n" for text in texts))
            self.data[sequence] = path
        config = base_config(
            self.folder / name,
            self.model,
            self.data[sequence],
            rows=rows,
            max_length=sequence,
            ranks=1,
            device=self.device,
            **{"precision": "bf16", "max_steps": self.steps} | training,
        )
        config["method"] = {method: {"r": 16, "loraAlpha": 32, "targetModules": ["all-linear"]}}
        return config


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder of safetensors, or a model of the Hub; default: one is made")
    parser.add_argument("--size", choices=[*SHAPES], default="1b", help="of the made Llama")
    parser.add_argument("--points", default="1x2048,4x2048,8x1024", help="batch x sequence, by comma")
    parser.add_argument("--steps", type=int, default=20, help="of every speed run; the first is left out")
    parser.add_argument("--only", default=",".join(CHECKS), help=f"by comma: {', '.join(CHECKS)}")
    parser.add_argument("--out", type=Path, help="also write the Markdown there")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short runs: tries the bench itself")
    chosen = parser.parse_args(arguments)
    found = probe()
    if chosen.device == "cuda" and not found["name"]:
        text = f"## GPU\n\n{NOT_RUN}\n"
    else:
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
            text = measure(prepare(chosen, Path(scratch)), chosen.only.split(","), headline(chosen, found))
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text, encoding="utf-8")
    return 0


def probe() -> dict[str, Any]:
    """The device, asked in a process of its own: a CUDA context here would take memory from what is measured."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def headline(chosen: argparse.Namespace, found: dict[str, Any]) -> str:
    """What was measured on what."""
    model = chosen.model or f"a Llama of size {'tiny' if chosen.tiny else chosen.size} with random weights"
    if chosen.device == "cpu":
        return f"{model}, on the CPU (the bench tries itself; no figure here means anything), torch {found['torch']}"
    gpu = f"{found['name']} ({found['bytes'] / 2**30:.0f} GiB, sm_{found['capability'].replace('.', '')})"
    return f"{model}, on {gpu}, driver {driver_version()}, torch {found['torch']}, commit {commit()}"


def driver_version() -> str:
    """As nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def commit() -> str:
    """Of this checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def prepare(chosen: argparse.Namespace, folder: Path) -> Bench:
    """The model, and what to run."""
    model = Path(chosen.model or folder / "model").resolve()
    if chosen.model is None:
        shape = SHAPES["tiny" if chosen.tiny else chosen.size]
        make_llama(model, **shape, dtype="float32" if chosen.tiny else "bfloat16")
    elif not model.is_dir():
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
        model = Path(snapshot_download(chosen.model, allow_patterns=wanted, local_dir=folder / "hub"))
    if chosen.tiny:
        return Bench(folder, model, chosen.device, [Point("qlora", 2, 32, offloaded=True)], 3, resume_sequence=32)
    sizes = [tuple(map(int, point.split("x"))) for point in chosen.points.split(",")]
    points = [Point(method, *size) for method in ("lora", "qlora") for size in sizes]
    points += [Point(method, *sizes[-1], checkpointing=True) for method in ("lora", "qlora")]
    points += [Point(method, *sizes[0], offloaded=True) for method in ("lora", "qlora")]
    return Bench(folder, model, chosen.device, points, chosen.steps, resume_sequence=512)


def measure(bench: Bench, wanted: list[str], head: str) -> str:
    """The section; a check that breaks is a line of it and does not stop the others."""
    parts = [f"## GPU\n\n{head[0].upper()}{head[1:]}."]
    for name in wanted:
        try:
            parts.append(CHECKS[name](bench))
        except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
            parts.append(f"**{name}: failed.** {str(error).strip()[-600:]}")
        print(parts[-1], file=sys.stderr, flush=True)
    return "\n\n".join(parts) + "\n"


# --- the checks ----------------------------------------------------------------------------------------------


def check_points(bench: Bench) -> str:
    """Speed and peak memory; of the 4-bit ones under FSDP also whether the self-test passed."""
    columns = ["method", "strategy", "batch x sequence", "checkpointing", "tokens/s", "peak allocated", "peak reserved"]
    lines = [" | ".join(["", *columns, "verdict", ""]).strip(), "|---" * (len(columns) + 1) + "|"]
    for number, point in enumerate(bench.points):
        config = bench.config(
            f"point-{number}",
            sequence=point.sequence,
            method=point.method,
            per_device_train_batch_size=point.batch,
            gradient_checkpointing=point.checkpointing,
        )
        if point.offloaded:
            config["distributed"] = {"strategy": "FSDP", "cpuOffload": True}
        folder = bench.folder / f"point-{number}"
        ending = launch_measured(config, folder).end(1800)
        lines.append(point_row(point, ending, folder))
    return "\n".join(lines)


def point_row(point: Point, ending: Ending, folder: Path) -> str:
    """One line; a run that failed says why."""
    kind = "FSDP, one rank, offloaded" if point.offloaded else "single"
    checkpointing = "yes" if point.checkpointing else "no"
    head = f"| {point.method} | {kind} | {point.batch} x {point.sequence} | {checkpointing} "
    if ending.code != 0:
        return f"{head}| | | | {failure(ending.termination)} |"
    (rank,) = read_ranks(folder)
    warnings = [line.message for line in ending.lines if isinstance(line, WarningLine)]
    verdict = warnings[0][:160] if warnings else "ok"
    if point.method == "qlora" and point.offloaded and rank.strategy == "FSDP":
        verdict = "self-test of sharded 4-bit weights passed"
    return (
        f"{head}| {rank.tokens_per_second:,.0f} | {gib(rank.peak_allocated)} | {gib(rank.peak_reserved)} | {verdict} |"
    )


def check_resume(bench: Bench) -> str:
    """A run that is told to stop and goes on has the losses of one that was left alone; and what a save costs."""

    def start(name: str, attempt: int) -> Launch:
        config = bench.config(name, sequence=bench.resume_sequence, max_steps=40, deterministic=True)
        config["method"]["lora"]["loraDropout"] = 0.1
        config["checkpoint"]["intervalSeconds"] = 0
        return launch_measured(config | {"attempt": attempt}, bench.folder / name / str(attempt))

    whole = start("whole", 1).end(1800)
    assert whole.code == 0, failure(whole.termination)
    (rank,) = read_ranks(bench.folder / "whole" / "1")
    first = start("stopped", 1)
    store = CheckpointStore((bench.folder / "stopped" / "checkpoints").as_uri())
    first.wait_until(lambda: any(spot.step >= 3 for spot in store.spots()), "three checkpoints", 1800)
    told = time.monotonic()
    first.terminate()
    stopped = first.end(120)
    seconds = time.monotonic() - told
    assert stopped.code == 75, failure(stopped.termination)
    resumed = start("stopped", 2).end(1800)
    assert resumed.code == 0, failure(resumed.termination)
    difference = max(abs(one - other) for one, other in zip(resumed.losses, whole.losses, strict=True))
    equal = "bitwise equal" if resumed.losses == whole.losses else f"**different by up to {difference:.1e}**"
    bytes_per_save = max(file.stat().st_size for file in bench.folder.glob("whole/checkpoints/**/state.safetensors"))
    return (
        f"Resume (LoRA bf16, dropout 0.1, deterministic): stopped by SIGTERM after step {stopped.termination.step} in "
        f"{seconds:.1f} s with exit code 75; the losses of all {len(whole.losses)} steps are {equal} to those of an "
        f"uninterrupted run.\n\nSave stall (gathering {bytes_per_save / 1e6:.0f} MB to host memory): first "
        f"{rank.stalls[0]:.3f} s, then at most {max(rank.stalls[1:]):.3f} s of {len(rank.stalls)} saves."
    )


def check_fit(bench: Bench) -> str:
    """A batch that cannot fit ends in the dry step, with 77 and a picture of the memory."""
    sequence = max(point.sequence for point in bench.points)
    batch, wrap = 4096, ()
    if bench.device == "cpu":  # host memory has no end of its own, so one is set
        batch, wrap = 40_000, limited_to(5 * 2**29)
    config = bench.config("fit", sequence=sequence, max_steps=1, per_device_train_batch_size=batch)
    ending = Launch(config, bench.folder / "fit", wrap=wrap).end(600)
    termination = ending.termination
    assert ending.code == 77, failure(termination)
    assert termination.memory is not None
    picture = termination.memory.model_dump(by_alias=True, exclude_none=True)
    return (
        f"Too large (batch {batch} x {sequence}): exit code {ending.code}, cause {termination.cause}, before the first "
        f"step; memory: `{json.dumps(picture)}`"
    )


def limited_to(size: int) -> tuple[str, ...]:
    """A command that limits its address space and becomes the one that follows it."""
    code = (
        f"import os, resource, sys; resource.setrlimit({resource.RLIMIT_AS}, ({size}, {size})); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return sys.executable, "-c", code


CHECKS: dict[str, Callable[[Bench], str]] = {"points": check_points, "resume": check_resume, "fit": check_fit}


def failure(termination: TrainTermination) -> str:
    """One line about a run that did not go as it should."""
    return f"exit code {termination.exit_code}, {termination.cause}: {' '.join(termination.message.split())[:200]}"


def gib(size: int) -> str:
    """Readable; nothing where there is none."""
    return f"{size / 2**30:.2f} GiB" if size else ""


if __name__ == "__main__":
    sys.exit(main())
