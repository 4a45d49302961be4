"""``python -m trainer.prove [--kills N] [--only TEXT] [--seed N]``: interrupt the cases of the matrix at random times.

What a case shows: whatever ends a gang, the next finds a good checkpoint and goes on from it, and the losses of
the whole run are those of a run that was left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.store import CheckpointStore
from trainer.matrix import KILLS, Case, design, read_results, write_results
from trainer.tiny import PACKED_LENGTH, Assets, Ending, Launch, a_config, free_port, make_assets
from trainer.zygote import Zygote

STEPS = 40
_CLEAN = {0, 75}
_AFTER_KILL = {0, 75, 76, 137}
"""A rank that was killed, a peer of it, or a gang that was done before the blow fell."""
_LEARNING_RATES = {"lora": 0.005, "qlora": 0.005, "full": 0.001}
"""High enough that losses fall within the run; in bf16 a higher one makes every rounding grow."""


@dataclass
class Proof:
    """What one case showed."""

    attempts: int
    steps: list[int] = field(default_factory=list)
    """Step of the newest checkpoint after each interruption."""
    difference: float = 0.0
    """Largest difference of a loss from the uninterrupted run."""


class Prover:
    """Runs cases in a folder."""

    def __init__(self, assets: Assets, folder: Path, zygote: Zygote) -> None:
        self._assets = assets
        self._folder = folder
        self._zygote = zygote
        self._references: dict[tuple[str, ...], tuple[list[float], float]] = {}

    def prove(self, case: Case, kills: int, seed: int) -> Proof:
        """Interrupt ``kills`` times, then let the run finish.

        Raises:
            AssertionError: an exit code, a resumption or a loss is wrong.
        """
        expected, seconds = self._reference(case)
        chance = random.Random(f"{seed} {case.name}")
        folder = self._folder / case.name
        proof = Proof(attempts=0)
        store = CheckpointStore((folder / "checkpoints").as_uri())
        while proof.attempts < kills:
            proof.attempts += 1
            gang = case.first if proof.attempts == 1 else case.then
            pods = self._start(case, gang, folder, proof.attempts)
            self._wait_for_a_moment(case, pods, store, seconds, chance)
            if 0 in self._strike(pods, chance):
                break  # it was quicker
            proof.steps.append(newest_step(store))
        proof.attempts += 1
        ending = self._finish(self._start(case, case.then, folder, proof.attempts))
        proof.difference = max(abs(ours - theirs) for ours, theirs in zip(ending.losses, expected, strict=True))
        assert proof.steps == sorted(proof.steps), f"progress was lost: {proof.steps}"
        assert proof.difference <= case.tolerance, f"losses differ by {proof.difference}"
        shutil.rmtree(folder)
        return proof

    def _reference(self, case: Case) -> tuple[list[float], float]:
        """Losses of an uninterrupted run on the first gang, and how long it took."""
        key = (case.first, case.method, case.data)
        if key not in self._references:
            folder = self._folder / ("reference-" + "-".join(key).replace(" ", "-"))
            started = time.monotonic()
            losses = self._finish(self._start(case, case.first, folder, 1)).losses
            self._references[key] = losses, time.monotonic() - started
            shutil.rmtree(folder)
        return self._references[key]

    def _start(self, case: Case, gang: str, folder: Path, attempt: int) -> list[Launch]:
        config = case_config(self._assets, folder, case, gang) | {"attempt": attempt}
        return [
            Launch(config, folder / f"{attempt}-{pod}", zygote=self._zygote, JOB_COMPLETION_INDEX=str(pod))
            for pod in range(config["topology"]["nodes"])
        ]

    def _finish(self, pods: list[Launch]) -> Ending:
        endings = [pod.end(240) for pod in pods]
        for ending in endings:
            assert ending.code == 0, f"{ending.code}: {ending.termination.message}\n{ending.stderr[-3000:]}"
        return endings[0]

    def _wait_for_a_moment(
        self, case: Case, pods: list[Launch], store: CheckpointStore, seconds: float, chance: random.Random
    ) -> None:
        """One time in five while the gang starts; else a few checkpoints on, anywhere within a step."""
        if case.then == "DDP 1":
            seconds = min(seconds, 1.5)  # a rank alone is through before others have met
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0.0, 0.5) * seconds)
            return
        target = newest_step(store) + chance.randint(1, 3)
        deadline = time.monotonic() + 240
        while newest_step(store) < target and all(pod.process.poll() is None for pod in pods):
            assert time.monotonic() < deadline, f"step {target} was never reached"
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 1.5) * seconds / STEPS)

    def _strike(self, pods: list[Launch], chance: random.Random) -> set[int]:
        """SIGTERM to a pod, SIGKILL of a rank, or SIGKILL of a whole pod; how the pods ended."""
        pod = chance.choice(pods)
        blow = chance.choice(("term", "rank", "pod"))
        if blow == "term":
            pod.terminate()
            allowed = _CLEAN
        elif blow == "rank" and (workers := pod.workers()):
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
            allowed = _AFTER_KILL
        else:
            pod.process.kill()
            allowed = _AFTER_KILL | {-9}
        codes = {peer.process.wait(60) for peer in pods}
        assert codes <= allowed, f"after {blow}: {codes}\n{pods[0].stderr[-3000:]}"
        return codes


def newest_step(store: CheckpointStore) -> int:
    """Of all complete checkpoints; 0 when there is none."""
    return max((spot.step for spot in store.spots()), default=0)


def case_config(assets: Assets, folder: Path, case: Case, gang: str) -> dict[str, Any]:
    """The configuration of one gang of a case."""
    strategy, ranks, *offload = gang.split()
    method, precision = case.method.split()
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "precision": precision,
        "learning_rate": _LEARNING_RATES[method],
    }
    if case.data == "uneven":
        settings["global_batch_size"] = 5
    config = a_config(assets, folder, ranks=int(ranks), **settings)
    matrices: dict[str, Any] = {"r": 4, "loraAlpha": 8, "targetModules": ["all-linear"]}
    if case.is_same_gang:
        matrices["loraDropout"] = 0.1  # generators must go on where they were
    config["method"] = {"full": {}} if method == "full" else {method: matrices}
    config["distributed"] = {"strategy": "FSDP" if strategy == "HSDP" else strategy, "cpuOffload": bool(offload)}
    if strategy == "HSDP":
        config["topology"] |= {"nodes": 2, "processesPerNode": int(ranks) // 2, "masterPort": free_port()}
    if case.data == "packed":
        config["data"] |= {
            "packsUri": assets.packs_uri,
            "trainPacks": assets.packs,
            "maxLength": PACKED_LENGTH,
        }
    return config


def main() -> None:
    """Prove all cases; the results go to ``docs/``."""
    parser = argparse.ArgumentParser(prog="python -m trainer.prove", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--only", default="", help="cases whose name contains this; the results of others are kept")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = [case for case in design() if arguments.only in case.name]
    results = read_results() if arguments.only else {}
    failed = []
    zygote = Zygote()
    try:
        with tempfile.TemporaryDirectory(prefix="prove-") as folder:
            prover = Prover(make_assets(Path(folder)), Path(folder), zygote)
            for case in cases:
                started = time.monotonic()
                try:
                    proof = prover.prove(case, arguments.kills, arguments.seed)
                except (AssertionError, TimeoutError) as error:
                    failed.append(case.name)
                    results.pop(case.name, None)
                    print(f"FAILED  {case.name}: {error}", flush=True)
                    continue
                results[case.name] = vars(proof)
                print(f"{time.monotonic() - started:6.1f} s  {case.name}: {json.dumps(vars(proof))}", flush=True)
    finally:
        zygote.close()
    print(f"{len(cases) - len(failed)} of {len(cases)} proved")
    write_results(results)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
