"""A recipe that trains nothing: steps that all ranks take together, checkpoints in the real store, the real ways out.

Ranks meet through files on the storage claim, as they would in a collective: nobody ends a step before all have begun
it. A rank whose peers are gone waits for ever, as in a collective; ending it is the launcher's business.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TextIO

from faults import STEP_SECONDS, come_to  # type: ignore[import-not-found]

import finetune_trainer
from finetune_trainer.clock import utc_now
from finetune_trainer.config import TrainConfig
from finetune_trainer.errors import PreemptedError
from finetune_trainer.messages import CheckpointRef, PublishedResult
from finetune_trainer.outcome import Handoff
from finetune_trainer.progress import Reporter
from finetune_trainer.sampler import total_steps
from finetune_trainer.signals import StopRequest
from finetune_trainer.store import CheckpointStore, Spot, sha256
from finetune_trainer.watchdog import Watchdog

_MEETINGS = Path("/mnt/finetune/storage/meetings")
_STEP_PAUSE = 0.1
_SAVE_EVERY = 2


class World:
    """The ranks of a gang, meeting on a shared volume."""

    def __init__(self, config: TrainConfig, rank: int) -> None:
        self.rank, self.size = rank, config.topology.world_size
        self._folder = _MEETINGS / f"{config.job.uid}-{config.attempt}"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"trainer-{rank}").write_text(finetune_trainer.__file__)  # for tests with several versions
        self._stop = self._folder / "stop"

    def meet(self, name: str, stop: StopRequest) -> bool:
        """Wait for all ranks; whether one of them was told to stop."""
        if stop.requested:
            self._stop.touch()
        (self._folder / f"{name}-{self.rank}").touch()
        while not all((self._folder / f"{name}-{rank}").exists() for rank in range(self.size)):
            if self._stop.exists():
                return True
            if stop.requested:
                self._stop.touch()
            time.sleep(0.02)
        return self._stop.exists()

    def close(self) -> None:
        """Nothing to close."""


class Recipe:
    """The face of ``finetune_trainer.recipe.Recipe`` that the worker knows."""

    def __init__(
        self, config: TrainConfig, stop: StopRequest, watchdog: Watchdog, handoff: Handoff, out: TextIO | None
    ) -> None:
        self.config, self.stop, self.watchdog, self.handoff = config, stop, watchdog, handoff
        self.world = World(config, int(os.environ["RANK"]))
        self.total_steps = total_steps(config.training, config.data.train_items)
        items, per_step = config.data.train_items, config.training.global_batch_size
        self.reporter = Reporter(out, self.total_steps, items, per_step)
        self.step = 0
        self.checkpoint: CheckpointRef | None = None

    def run(self) -> PublishedResult | None:
        """Rendezvous, resume, steps, result."""
        self.watchdog.enter("rendezvous", 120)
        self.reporter.phase("rendezvous")
        if self.world.rank == 0:
            self.store = CheckpointStore(self.config.checkpoint.uri)
            self.fence = self.store.claim_fence(b"{}")
        self._meet("begin")
        self._resume()
        self.reporter.phase("train")
        while self.step < self.total_steps:
            self.watchdog.enter(f"step {self.step + 1}", STEP_SECONDS)
            come_to(self.config, self.world.rank, self.step, self.stop, self.watchdog)
            self._meet(f"step-{self.step}")
            time.sleep(_STEP_PAUSE)
            self.step += 1
            self._say()
        return self._publish()

    def _meet(self, name: str) -> None:
        if self.world.meet(name, self.stop):
            self.watchdog.enter("stop", 10)
            self._save()
            raise PreemptedError("stopped by SIGTERM")

    def _resume(self) -> None:
        """Rank 0 knows the newest checkpoint and tells the others by a file."""
        told = self.world._folder / "resume"
        if self.world.rank == 0:
            spots = self.store.spots()
            step = spots[0].step if spots else 0
            if spots:
                self.checkpoint = CheckpointRef(step=step, uri=f"{self.store.uri}/{spots[0].path}", time=utc_now())
            told.with_suffix(".part").write_text(str(step))
            told.with_suffix(".part").rename(told)
        while not told.exists():
            self.stop.check()
            time.sleep(0.02)
        self.step = int(told.read_text())
        # It also runs in trainers of an earlier release, which leave that to the log.
        if self.step and os.environ["LOCAL_RANK"] == "0" and hasattr(self.handoff, "record_resumed"):
            self.handoff.record_resumed(self.step)
        if self.world.rank == 0 and self.checkpoint is not None:
            self.handoff.record_step(self.step)
            self.handoff.record_checkpoint(self.checkpoint)
            self.reporter.resumed(self.step, 1.0, self.checkpoint)

    def _say(self) -> None:
        if self.world.rank != 0:
            return
        self.handoff.record_step(self.step)
        if self.step % _SAVE_EVERY == 0:
            self._save()
        self.reporter.stepped(self.step, 1.0 / self.step, 1e-4, 100)

    def _save(self) -> None:
        if self.world.rank != 0 or self.step == 0:
            return
        if self.checkpoint is not None and self.checkpoint.step == self.step:
            return
        state = json.dumps({"step": self.step}).encode()
        uri = self.store.save(Spot(self.fence, self.step), state, state)
        self.store.prune(self.fence, 2)
        self.checkpoint = CheckpointRef(step=self.step, uri=uri, time=utc_now())
        self.handoff.record_checkpoint(self.checkpoint)
        self.reporter.saved(self.checkpoint)

    def _publish(self) -> PublishedResult | None:
        self._meet("end")
        self.watchdog.rest()
        if self.world.rank != 0:
            return None
        result = PublishedResult(
            time=utc_now(), uri=self.config.output.uri, digest=sha256(b"nothing"), metrics={"evalLoss": 1.0}
        )
        self.reporter.result(result)
        return result
