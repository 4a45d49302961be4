"""What gangs run in tests of everything around the training, and the faults that are asked of them.

Two FineTuneRuntimes, named after their recipe: ``torch-free`` trains nothing, so that a gang starts within a second and
a step takes a tenth of one; ``real`` is the trainer's own. Both ask ``inside/faults.py`` before each step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e.cluster.shell import write_atomic
from e2e.jobs import tiny_training
from e2e.kubectl import Json, Kubectl, wait_until
from e2e.stack import Stack

INSIDE = Path(__file__).parent / "inside"
MEMORY = {"torch-free": "256Mi", "real": "3Gi"}
"""Recipe -> the memory of its pods."""
_BY_THE_GANG = ("faults", "meetings")
"""Folders of the storage claim that pods and tests meet in."""


def add_recipes(stack: Stack) -> None:
    """What runs inside the pods, and a runtime for each recipe."""
    inside = stack.models / "lifecycle"
    shutil.rmtree(inside, ignore_errors=True)
    shutil.copytree(INSIDE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    inside.chmod(0o755)
    for path in inside.iterdir():
        path.chmod(0o644)
    for name in _BY_THE_GANG:
        (stack.storage / name).mkdir(exist_ok=True)
        (stack.storage / name).chmod(0o777)
    for recipe in MEMORY:
        add_runtime(stack, f"lifecycle-{recipe}", recipe)


def add_runtime(stack: Stack, name: str, recipe: str, *code: str) -> None:
    """A runtime for a recipe; Python looks into the folders ``code`` of the models' claim before the image's own."""
    path = ":".join(f"/mnt/finetune/model/{folder}" for folder in (*code, "lifecycle"))
    stack.kubectl.apply(_runtime(stack.kubectl, name, recipe, path))


def spec_of(recipe: str, steps: int) -> dict[str, Any]:
    """Fields of a FineTuneJob that takes so many short steps, each of them worth a checkpoint."""
    return {
        "runtimeRef": {"name": f"lifecycle-{recipe}"},
        "training": tiny_training(maxSteps=steps, globalBatchSize=8),
        "checkpoint": {"intervalSeconds": 0},
    }


class Faults:
    """What is asked of the gangs of a cluster, by files on its storage claim."""

    def __init__(self, stack: Stack) -> None:
        self._folder = stack.storage / "faults"

    def plan(self, job: str, kind: str, step: int, *, rank: int = 1, attempts: Sequence[int] = (1,)) -> None:
        """All ranks of these attempts stop before the step after ``step``; at :meth:`go` this one breaks."""
        for path in self._folder.glob(f"{job}.*"):
            path.unlink()
        fault = {"kind": kind, "rank": rank, "step": step, "attempts": list(attempts)}
        write_atomic(self._folder / f"{job}.json", json.dumps(fault))

    def hold(self, job: str, step: int, *, attempts: Sequence[int] = (1,)) -> None:
        """They stop there until :meth:`go`, and nothing breaks; held already, they go on and stop at the later step."""
        self.plan(job, "none", step, attempts=attempts)

    def wait_until_held(self, job: str, seconds: float = 240) -> None:
        """Both ranks have come to the step and wait for the word to go on."""
        held = f"{job}.held-*"
        wait_until(lambda: len(list(self._folder.glob(held))) == 2, seconds, f"{job}: both ranks at the step")

    def go(self, job: str) -> None:
        """What was planned may happen."""
        (self._folder / f"{job}.go").touch()


def _runtime(kubectl: Kubectl, name: str, recipe: str, python_path: str) -> Json:
    spec = kubectl.get("ftr", "default")["spec"]
    pool = {**spec["pools"][0], "memoryPerGpu": MEMORY[recipe], "cpuPerGpu": "50m", "shmSize": "64Mi"}
    env = [
        {"name": "PYTHONPATH", "value": python_path},
        {"name": "LIFECYCLE_RECIPE", "value": recipe},
    ]
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneRuntime",
        "metadata": {"name": name},
        "spec": {**spec, "pools": [pool], "env": env},
    }
