"""Notes what every rank of a real run does, without a line in the trainer: put this folder first on PYTHONPATH.

Python imports this module at start. Where ``FINETUNE_MEASURE`` names a folder, the recipe is replaced by a subclass
that notes when steps and micro-steps end, how long state is gathered for, and the peak memory; when training ends, for
whatever reason, each rank writes ``rank-<n>.json`` there. Launcher, exit codes and everything else are the real ones.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = "finetune_trainer.recipe"


def measuring(recipe_class: Any) -> Any:
    """The subclass."""

    class MeasuredRecipe(recipe_class):  # type: ignore[misc]
        """Adds clocks."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.seen: dict[str, list[float]] = {
                name: [] for name in ("step_ends", "cpu_ends", "tokens", "polls", "stalls")
            }

        def _train(self) -> None:
            gather = self.strategy.gather

            def timed_gather() -> Any:
                self._settle()
                started = time.monotonic()
                state = gather()
                self._settle()
                self.seen["stalls"].append(time.monotonic() - started)
                return state

            self.strategy.gather = timed_gather
            try:
                super()._train()
            finally:
                self._note()

        def _poll(self, look_for_newer_gang: bool = False) -> None:
            self.seen["polls"].append(time.monotonic())
            super()._poll(look_for_newer_gang)

        def _complete_step(self, loss: float, rate: float, tokens: int, seconds: float) -> None:
            super()._complete_step(loss, rate, tokens, seconds)
            self._settle()
            self.seen["step_ends"].append(time.monotonic())
            self.seen["cpu_ends"].append(time.process_time())
            self.seen["tokens"].append(tokens)

        def _settle(self) -> None:
            import torch

            if self.world.device.type == "cuda":
                torch.cuda.synchronize()

        def _note(self) -> None:
            import torch

            cuda = self.world.device.type == "cuda"
            known = {
                **self.seen,
                "losses": self.losses,
                "strategy": self.strategy.name,
                "peak_resident": peak_resident_bytes(),
                "peak_allocated": torch.cuda.max_memory_allocated() if cuda else 0,
                "peak_reserved": torch.cuda.max_memory_reserved() if cuda else 0,
            }
            folder = Path(os.environ["FINETUNE_MEASURE"])
            (folder / f"rank-{self.world.rank}.json").write_text(json.dumps(known))

    return MeasuredRecipe


def peak_resident_bytes() -> int:
    """Of this process since its exec; ``ru_maxrss`` would begin with what its parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the recipe be imported as ever and replaces the class afterwards."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != RECIPE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_replace(module: Any) -> None:
            execute(module)
            module.Recipe = measuring(module.Recipe)

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


if "FINETUNE_MEASURE" in os.environ:
    sys.meta_path.insert(0, _Finder())
