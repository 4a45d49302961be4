"""How long a job takes from SIGTERM to its end when a step has 16 micro-steps of about a second each.

    make bench-stop            # or: python bench/stop_time.py [--runs 5] [--ranks 1,2] [--sequence 224]

A real launcher is told to stop, as the kubelet does it, at a random moment after its first step; the step in progress
is dropped and the last complete one saved. Prints a Markdown table with the slowest and the median stop. Bar: 15 s, the
grace that a spot node leaves to its pods; the exit code must be 75.

How long a micro-step is depends on the machine: the measured time is in the table, ``--sequence`` sets it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import base_config, launch_measured, machine, make_llama, read_ranks

from finetune_trainer.messages import Progress, parse_line

BAR_SECONDS = 15.0
MICRO_STEPS = 16
ROWS = 64


@dataclass(frozen=True)
class Stop:
    """One run that was told to stop."""

    seconds: float
    code: int
    micro_step_seconds: float
    resumable_step: int


def main() -> None:
    """All runs; exits with 1 where one missed the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--sequence", type=int, default=224, help="tokens of a micro-step; 224 take about 1 s a core")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    misses = 0
    with tempfile.TemporaryDirectory(prefix="bench-stop-") as scratch:
        model, data = Path(scratch) / "model", Path(scratch) / "rows.jsonl"
        make_llama(model, hidden=512, inner=1408, layers=12, heads=8, vocabulary=512, dtype="float32")
        data.write_text("".join(json.dumps(long_row(row, arguments.sequence)) + "\n" for row in range(ROWS)))
        print("| ranks | micro-step | SIGTERM to exit: slowest | median | exit codes | saved steps |")
        print("|---|---|---|---|---|---|", flush=True)
        for ranks in map(int, arguments.ranks.split(",")):
            stops = []
            for number in range(arguments.runs):
                folder = Path(scratch) / f"{ranks}-{number}"
                config = base_config(
                    folder,
                    model,
                    data,
                    rows=ROWS,
                    max_length=arguments.sequence,
                    ranks=ranks,
                    device="cpu",
                    max_steps=100,
                    gradient_accumulation_steps=MICRO_STEPS,
                )
                stops.append(stop_once(config, folder, chance))
            seconds = [stop.seconds for stop in stops]
            codes = sorted({stop.code for stop in stops})
            misses += max(seconds) > BAR_SECONDS or codes != [75]
            print(
                f"| {ranks} | {statistics.median(stop.micro_step_seconds for stop in stops):.2f} s "
                f"| {max(seconds):.1f} s | {statistics.median(seconds):.1f} s | {' '.join(map(str, codes))} "
                f"| {' '.join(str(stop.resumable_step) for stop in stops)} |",
                flush=True,
            )
    print(f"\n{arguments.runs} runs each; {machine()}. Bar: {BAR_SECONDS:.0f} s and exit code 75.")
    raise SystemExit(bool(misses))


def long_row(number: int, tokens: int) -> dict[str, str]:
    """A row that fills the sequence, byte by byte."""
    return {"prompt": f"row {number}: ", "completion": "abcdefgh" * (tokens // 8 + 1)}


def stop_once(config: dict[str, object], folder: Path, chance: random.Random) -> Stop:
    """Wait for the first step, then for a random part of the second, then SIGTERM."""
    launch = launch_measured(config, folder)
    started = time.monotonic()
    launch.wait_until(lambda: newest_step(folder) >= 1, "the first step", 600)
    # A step cannot be longer than what has passed so far.
    time.sleep(chance.uniform(0.0, 0.5) * (time.monotonic() - started))
    told = time.monotonic()
    launch.terminate()
    ending = launch.end(120)
    seconds = time.monotonic() - told
    polls = read_ranks(folder)[0].polls
    micro_steps = [later - earlier for earlier, later in itertools.pairwise(polls)]
    saved = ending.termination.checkpoint.step if ending.termination.checkpoint is not None else 0
    return Stop(seconds, ending.code, statistics.median(micro_steps), saved)


def newest_step(folder: Path) -> int:
    """As the progress lines say."""
    lines = map(parse_line, (folder / "stdout").read_text(encoding="utf-8").splitlines())
    return max((line.step for line in lines if isinstance(line, Progress)), default=0)


if __name__ == "__main__":
    main()
