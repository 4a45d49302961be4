"""One attempt of a run, as one rank lives it. Read :meth:`Recipe.run` first: it is the whole story.

All ranks walk through the same methods; what only rank 0 does stands behind ``world.is_main`` and contains no
collective. Ways out: the published result, or an exception of :mod:`finetune_trainer.errors` (or any other;
see :mod:`finetune_trainer.outcome` for the exit code that each one means).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TextIO

import torch

from finetune_trainer.checkpoint import (
    Checkpoint,
    DataPosition,
    Snapshot,
    Totals,
    collect_rng,
    find_newest_good,
    losses_tensor,
    own_rng,
    restore_rng,
    share,
)
from finetune_trainer.clock import utc_now
from finetune_trainer.config import TrainConfig
from finetune_trainer.data import Dataset, load_packs
from finetune_trainer.errors import DataError, NonFiniteError, PreemptedError
from finetune_trainer.evaluation import BASELINE, Baseline, Measurement, evaluation_loss, find_baseline, greedy_answers
from finetune_trainer.loss import token_loss_sum
from finetune_trainer.messages import CheckpointRef, Phase, PublishedResult, Sample
from finetune_trainer.model import choose_dtype, load_model, load_tokenizer, local_path, verify_base
from finetune_trainer.outcome import Handoff
from finetune_trainer.progress import Reporter
from finetune_trainer.publish import publish_adapter
from finetune_trainer.result import DamagedResultError, Lineage, find_result
from finetune_trainer.sampler import Sampler, total_steps
from finetune_trainer.saver import Cadence, Saver
from finetune_trainer.schedule import learning_rate
from finetune_trainer.signals import StopRequest
from finetune_trainer.store import CheckpointStore, Store
from finetune_trainer.strategies import choose_strategy, replicate
from finetune_trainer.strategies.base import PARAM, SelfTestError, State, Strategy, load_parameters
from finetune_trainer.watchdog import Watchdog
from finetune_trainer.world import join_world


class Recipe:
    """Setup, baseline, rehearsal, resume, train, evaluate, publish."""

    def __init__(
        self, config: TrainConfig, stop: StopRequest, watchdog: Watchdog, handoff: Handoff, out: TextIO | None
    ) -> None:
        """``out`` is the real stdout on global rank 0 and None elsewhere."""
        self.config = config
        self.stop = stop
        self.watchdog = watchdog
        self.handoff = handoff
        items = config.data.train_items
        self.total_steps = total_steps(config.training, items)
        self.sampler = Sampler(items, config.training.seed)
        per_step = config.training.global_batch_size
        self.reporter = Reporter(out, self.total_steps, items, per_step, note=handoff.record_said)
        self.step = 0
        self.losses: list[float] = []
        self.totals = Totals()
        self.saved_step: int | None = None
        self.resumed_from: Checkpoint | None = None
        self.checkpoint: CheckpointRef | None = None
        self.saver: Saver | None = None
        self.superseded = False

    def run(self) -> PublishedResult | None:
        """The attempt; only rank 0 returns the result.

        Raises:
            PreemptedError: every rank stopped at the same point, and the last completed step is saved.
        """
        self._join_gang()
        if self._is_published():
            return self.result
        self._claim_fence()
        self._open_data()
        self._find_checkpoint()
        self._load_model()
        self._measure_baseline()
        self._rehearse()
        self._continue()
        self._train()
        self._measure_adapter()
        self._publish()
        return self.result

    # --- setup -------------------------------------------------------------------------------------------

    def _join_gang(self) -> None:
        """Meet the other ranks; make arithmetic reproducible if that was asked for."""
        limits = self.config.phase_limits
        self._enter("rendezvous", limits.rendezvous + 30)  # the store's own time-out comes first: it says more
        self.stop.check()
        self.world = join_world(self.config.topology, limits, group_of_one=self.config.distributed.cpu_offload)
        self._use_strategy(*choose_strategy(self.world, self.config))
        if self.config.training.deterministic:
            torch.use_deterministic_algorithms(True)

    def _use_strategy(self, strategy: Strategy, reason: str) -> None:
        self.strategy = strategy
        self.reporter.spread(strategy.name)
        self._say(f"strategy {strategy.name}: {reason}; {self.total_steps} steps in total")

    def _is_published(self) -> bool:
        """Whether an earlier attempt published the result and died before it could say so."""
        self.result: PublishedResult | None = None
        if self.world.is_main:
            self.output = Store(self.config.output.uri)
            self.result = self._find_result()
            if self.result is not None:
                self.reporter.result(self.result)
        return self.world.any(self.result is not None)

    def _find_result(self) -> PublishedResult | None:
        """Rank 0: the result of this run, if there is one and it is whole."""
        config = self.config
        try:
            return find_result(self.output, Lineage(config.run.digest, config.data.digest, config.model.digest))
        except DamagedResultError as error:
            uri = self.output.uri
            self.reporter.warn(f"the published result at {uri} is not used, this run trains again: {error}")
            return None

    def _claim_fence(self) -> None:
        """Rank 0 takes the next fence, so that an older gang of this run stops at its next save."""
        fence = 0
        if self.world.is_main:
            self.store = CheckpointStore(self.config.checkpoint.uri)
            claim = {"attempt": self.config.attempt, "jobUid": self.config.job.uid, "time": utc_now()}
            fence = self.store.claim_fence(json.dumps(claim).encode())
            self.saver = Saver(self.store, self.config, fence, self.watchdog, self._on_saved)
        self.fence = int(self.world.sum(fence)[0])

    def _open_data(self) -> None:
        """Tokenizer and rows; before the model, for a mistake here shows in seconds."""
        config = self.config
        self._enter("load", config.phase_limits.load)
        self.stop.check()
        self.folder = verify_base(config.model)
        self.tokenizer = load_tokenizer(self.folder)
        data = config.data
        self.train_data = self._open_dataset(data.train_uri, data.train_rows, data.packs_uri)
        self.eval_data: Dataset | None = None
        if data.eval_uri is not None and data.eval_rows > 0:
            self.eval_data = self._open_dataset(data.eval_uri, data.eval_rows)
        if len(self.train_data) != data.train_items:
            message = f"must hold {data.train_items} sequences as when it was packed, but has {len(self.train_data)}"
            raise DataError("spec.dataset", str(data.packs_uri), message, "set a new runId")

    def _open_dataset(self, uri: str, rows: int, packs_uri: str | None = None) -> Dataset:
        packs = load_packs(local_path(packs_uri), rows) if packs_uri is not None else None
        dataset = Dataset(local_path(uri), self.tokenizer, self.config.data.max_length, packs)
        if dataset.row_count != rows:
            message = f"must have {rows} rows as when it was checked, but has {dataset.row_count}"
            raise DataError("spec.dataset", uri, message, "delete the staged copy, or set a new runId")
        dataset.row(0)  # a tokenizer without a chat template fails now, not after the baseline
        return dataset

    def _find_checkpoint(self) -> None:
        """The newest checkpoint that verifies, on every rank; none when the run begins."""
        manifest, state = self._read_checkpoint() if self.world.is_main else (b"", b"")
        self.resumed_from = share(self.world, manifest, state)

    def _read_checkpoint(self) -> tuple[bytes, bytes]:
        """Rank 0: the newest good checkpoint as stored, or nothing; damaged ones are passed over."""
        for spot, content, problem in find_newest_good(self.store, self.config):
            if content is not None:
                self._on_saved(CheckpointRef(step=spot.step, uri=f"{self.store.uri}/{spot.path}"))
                return content
            self.reporter.warn(f"checkpoint {spot.path} is passed over: {problem}")
        return b"", b""

    def _load_model(self) -> None:
        """The base model with adapters, and with the parameters of the checkpoint, spread over the ranks."""
        self._say("base model in {}: {}".format(*choose_dtype(self.config)))
        try:
            self._spread_model()
        except SelfTestError as error:
            self.reporter.warn(f"{self.strategy.name} is not used, every rank holds the whole model: {error}")
            self._use_strategy(*replicate(self.world))
            self._spread_model()
        self._poll()

    def _spread_model(self) -> None:
        """What peft and transformers know is ``hf_model``; ``model`` is what the strategy made of it, to be called."""
        self.hf_model = load_model(self.folder, self.config, self.world.device)
        if self.resumed_from is not None:
            load_parameters(self.hf_model, self.resumed_from.state)
        self.model = self.strategy.wrap(self.hf_model, self.config.training)
        self.model.train()

    # --- measure -----------------------------------------------------------------------------------------

    def _measure_baseline(self) -> None:
        """What the base model scores, once per run: a later attempt finds it in the store."""
        self._enter("baseline", self.config.phase_limits.evaluate)
        text = self.world.broadcast_bytes(self._read_baseline() if self.world.is_main else None)
        if text:
            self.baseline: Measurement = Baseline.model_validate_json(text)
        elif self.config.method.full is not None and self.resumed_from is not None:
            self.reporter.warn(f"{BASELINE} is gone, and so is the base model: before and after are not compared")
            self.baseline = Measurement()
        else:
            with self._base_model():
                self.baseline = self._measure()
            if self.world.is_main:
                baseline = Baseline(model_digest=self.config.model.digest, **self.baseline.model_dump())
                self.store.write(BASELINE, baseline.to_json().encode())
        self.reporter.evaluated(self.baseline.eval_loss)

    def _read_baseline(self) -> bytes:
        return find_baseline(self.store, self.config.model.digest, self.reporter.warn)

    def _base_model(self) -> AbstractContextManager[Any]:
        """Adapters are switched off; without adapters the model is still the base, for nothing was trained yet."""
        if self.config.method.full is not None:
            return nullcontext()
        manager: AbstractContextManager[Any] = self.hf_model.disable_adapter()
        return manager

    def _measure_adapter(self) -> None:
        """What the trained model scores."""
        self._enter("evaluate", self.config.phase_limits.evaluate)
        self.trained = self._measure()
        self.reporter.evaluated(self.trained.eval_loss)

    def _measure(self) -> Measurement:
        evaluation, per_device = self.config.evaluation, self.config.training.per_device_train_batch_size
        self.model.eval()
        loss = None
        with self._precision():
            if self.eval_data is not None:
                loss = evaluation_loss(self.model, self.eval_data, per_device, self.world, self._poll)
            answers = greedy_answers(
                self.hf_model,
                self.tokenizer,
                evaluation.prompts,
                evaluation.max_new_tokens,
                self.train_data.is_conversational,
                self.world,
                self._poll,
                together=self.strategy.is_sharded,
            )
        self.model.train()
        return Measurement(eval_loss=loss, answers=answers)

    def _precision(self) -> AbstractContextManager[Any]:
        """A model that is trained whole lies in fp32 and computes in bf16 where that was asked for."""
        mixed = self.config.method.full is not None and self.config.training.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=mixed)

    # --- rehearse and resume ------------------------------------------------------------------------------

    def _rehearse(self) -> None:
        """A step at the longest length, without effect: what does not fit into memory fails now, not after hours.

        Its loss counts nothing and its learning rate is 0, so the parameters stay as they are; the moments that it
        leaves are replaced when the run continues.
        """
        self._enter("train", self.config.phase_limits.first_step)
        self.watchdog.enter("dry step", self.config.phase_limits.first_step)
        batch = self.train_data.longest_batch(
            self.config.training.per_device_train_batch_size, self.config.data.longest_row_tokens
        )
        self.handoff.longest_tokens = batch.input_ids.shape[1]
        self._poll()
        with self._precision():
            loss = token_loss_sum(self.model, batch, self.world.device)
        self.strategy.backward(loss * 0.0, last=True)
        self.strategy.step(0.0, self.config.training.max_grad_norm)

    def _continue(self) -> None:
        """From the checkpoint, where there is one; its parameters are in the model already."""
        found = self.resumed_from
        self.strategy.restore(found.state if found is not None else {})
        if found is None:
            return
        self.step = self.saved_step = found.manifest.step
        self.losses = found.losses
        self.totals = Totals(found.manifest.train_tokens, found.manifest.train_seconds)
        if self.world.local_rank == 0:
            self.handoff.record_resumed(self.step)
        self._record_step()
        if self.checkpoint is not None:
            self.reporter.resumed(self.step, self.losses[-1], self.checkpoint)

    # --- train -------------------------------------------------------------------------------------------

    def _train(self) -> None:
        """The remaining steps; a stop drops the step in progress and saves the last complete one."""
        self.watchdog.enter(f"step {self.step + 1}", self.config.phase_limits.first_step)
        self.cadence = Cadence(self.config.checkpoint.interval_seconds, time.monotonic())
        restore_rng(self.world, self.config.training.seed, self.resumed_from)
        self.resumed_from = None  # rank 0 held the whole state in host memory
        self.rng = own_rng(self.world)
        try:
            while self.step < self.total_steps:
                self._train_step()
                self._save_if_due()
        except PreemptedError:
            self.strategy.discard()
            if not self.superseded:
                self._save()
            raise
        self._save()

    def _train_step(self) -> None:
        """One optimizer step over the global batch.

        Raises:
            NonFiniteError: the loss or the gradient norm is NaN or infinite; nothing is saved any more.
        """
        started = time.monotonic()
        training = self.config.training
        position = self.step * training.global_batch_size
        batches = [
            self.train_data.batch(rows)
            for rows in self.sampler.micro_batches(
                position,
                training.global_batch_size,
                training.per_device_train_batch_size,
                self.world.rank,
                self.world.size,
            )
        ]
        label_tokens, tokens = self.world.sum(
            sum(batch.label_tokens for batch in batches), sum(batch.tokens for batch in batches)
        )
        share = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self.handoff.longest_tokens = max(batch.input_ids.shape[1] for batch in batches)
        for micro_step, batch in enumerate(batches, start=1):
            self._poll()
            with self._precision():
                loss = token_loss_sum(self.model, batch, self.world.device) / max(label_tokens, 1)
            self.strategy.backward(loss, last=micro_step == len(batches))
            share += loss.detach()
        (mean_loss,) = self.world.sum(float(share))
        self._assert_finite("loss", mean_loss)
        rate = learning_rate(training, self.step, self.total_steps)
        self._assert_finite("gradient norm", self.strategy.step(rate, training.max_grad_norm))
        self._complete_step(mean_loss, rate, int(tokens), time.monotonic() - started)

    def _complete_step(self, loss: float, rate: float, tokens: int, seconds: float) -> None:
        self.step += 1
        self.losses.append(loss)
        self.rng = own_rng(self.world)  # a dropped step must not have drawn from the generators
        self.totals = Totals(self.totals.tokens + tokens, self.totals.seconds + seconds)
        self.watchdog.enter(f"step {self.step + 1}", self.config.phase_limits.step)
        self.reporter.stepped(self.step, loss, rate, tokens)
        self._record_step()

    def _assert_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(f"the {what} of step {self.step + 1} is {value}")

    # --- save --------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        due = False
        if self.saver is not None:
            self.saver.raise_error()
            # After every step means every step, also when a step is faster than the writer.
            may_wait = self.config.checkpoint.interval_seconds == 0
            due = self.cadence.is_due(time.monotonic()) and (may_wait or not self.saver.is_busy)
        if self.world.any(due):
            self._snapshot()

    def _save(self) -> None:
        """Make sure that the last completed step is in the store; collective."""
        if self.step > 0 and self.saved_step != self.step:
            self._snapshot()
        if self.saver is not None:
            self.saver.join()

    def _snapshot(self) -> None:
        """Copy the state to host memory and hand it to the writer; collective."""
        if self.saver is not None:
            self.saver.join()  # it still reads the buffers that gather() is about to overwrite
        started = time.monotonic()
        tensors = self.strategy.gather() | collect_rng(self.world, self.rng) | losses_tensor(self.losses)
        self.saved_step = self.step
        if self.saver is not None:
            self.cadence.record(started, time.monotonic() - started)
            self.saver.submit(Snapshot(self.step, self._position(), self.totals, tensors, self.strategy.name))

    def _position(self) -> DataPosition:
        rows = self.step * self.config.training.global_batch_size
        epoch, consumed = self.sampler.epoch_at(rows)
        return DataPosition(epoch=epoch, consumed=consumed, rows=rows)

    def _on_saved(self, checkpoint: CheckpointRef) -> None:
        """Rank 0, possibly in the writer's thread: a checkpoint is complete."""
        self.checkpoint = checkpoint
        self.reporter.saved(checkpoint)
        self.handoff.record_checkpoint(checkpoint)

    def _record_step(self) -> None:
        if self.world.is_main:
            self.handoff.record_step(self.step)

    # --- publish -----------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Rank 0 uploads the adapter; the others wait: no rank leaves a gang that is still at work."""
        self._enter("publish", self.config.phase_limits.publish)
        self._poll(look_for_newer_gang=True)
        state = self.strategy.gather()
        if self.world.is_main:
            with suppress(PreemptedError):
                self._upload(state)
        if self.world.any(self.world.is_main and self.result is None):
            self._poll()  # raises on every rank: rank 0 saw a newer gang between two writes
        self.watchdog.rest()

    def _upload(self, state: State) -> None:
        parameters = {name.removeprefix(PARAM): tensor for name, tensor in state.items() if name.startswith(PARAM)}
        self.result = publish_adapter(
            self.output,
            self.config,
            self.hf_model,
            self.tokenizer,
            parameters,
            self.losses,
            self._metrics(),
            self._samples(),
            self._check_fence,
        )
        self.reporter.result(self.result)

    def _check_fence(self) -> None:
        """Rank 0 alone, between writes.

        Raises:
            PreemptedError: a newer gang of this run exists.
        """
        if self.saver is not None and self.saver.check_superseded():
            raise PreemptedError("a newer gang of this run publishes")

    def _metrics(self) -> dict[str, float]:
        metrics = {
            "baseEvalLoss": self.baseline.eval_loss,
            "evalLoss": self.trained.eval_loss,
            "trainLoss": math.fsum(self.losses) / len(self.losses),
            "steps": float(self.step),
            "trainTokens": float(self.totals.tokens),
            "seconds": self.totals.seconds,
        }
        return {name: value for name, value in metrics.items() if value is not None}

    def _samples(self) -> list[Sample]:
        prompts = self.config.evaluation.prompts
        before = self.baseline.answers or [""] * len(prompts)
        answers = zip(prompts, before, self.trained.answers, strict=True)
        return [Sample(prompt=prompt, before=before, after=after) for prompt, before, after in answers]

    # --- small helpers ------------------------------------------------------------------------------------

    def _poll(self, look_for_newer_gang: bool = False) -> None:
        """Agree with the other ranks whether to stop; collective.

        Raises:
            PreemptedError: SIGTERM reached a rank, or rank 0 saw a higher fence; all ranks alike.
        """
        if look_for_newer_gang and self.saver is not None:
            self.saver.check_superseded()
        newer = (self.saver.superseded_by or 0) if self.saver is not None else 0
        stops, newer_fence = self.world.sum(float(self.stop.requested), newer)
        self.superseded = newer_fence > 0
        if self.superseded:
            raise PreemptedError(f"gang {int(newer_fence)} of this run is newer than this one, gang {self.fence}")
        if stops > 0:
            raise PreemptedError(f"stopped by SIGTERM after step {self.step}")

    def _enter(self, phase: Phase, limit_seconds: float) -> None:
        self.watchdog.enter(phase, limit_seconds)
        self.reporter.phase(phase)

    def _say(self, text: str) -> None:
        print(f"rank {os.environ.get('RANK', '0')}: {text}", file=sys.stderr, flush=True)
