"""Which row is trained when: a pure function of (seed, position), so the whole state is one number.

``position`` counts the rows consumed by all ranks since the start of the run. Rows of pass ``e`` over the
data come in a permutation of (seed, e); a batch that reaches the end of a pass runs on into the next, so
every batch is full and every row comes exactly once per pass. Rank r takes ``[position + r :: world]`` of a
batch. Nothing depends on the world size except who computes what: another gang continues with the same rows
in the same batches.

When the ranks and micro-batches do not divide the global batch, the slots left over are None: rows of weight
zero. Torch-free.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.config import TrainConfig, Training
from finetune_trainer.errors import ConfigError


class Sampler:
    """The order of the rows of one run."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed

    def row_at(self, position: int) -> int:
        """The row consumed at this position."""
        epoch, offset = divmod(position, self._rows)
        return int(_permutation(self._rows, self._seed, epoch)[offset])

    def epoch_at(self, position: int) -> tuple[int, int]:
        """(complete passes, rows consumed of the current one): what a checkpoint records."""
        return divmod(position, self._rows)

    def micro_batches(
        self, position: int, global_batch: int, per_device: int, rank: int, world: int
    ) -> list[list[int | None]]:
        """One rank's share of the batch at ``position``, in micro-batches of ``per_device`` slots."""
        slots: list[int | None] = [self.row_at(position + slot) for slot in range(rank, global_batch, world)]
        return in_micro_batches(slots, per_device, micro_steps(global_batch, per_device, world))


def micro_steps(rows: int, per_device: int, world: int) -> int:
    """Micro-steps that every rank needs so that all of them together cover the rows."""
    return math.ceil(rows / (per_device * world))


def check_batch_arithmetic(config: TrainConfig) -> None:
    """Assert that the ranks' micro-batches cover the global batch, no more than needed.

    Raises:
        ConfigError: gradientAccumulationSteps is not ceil(global / (per device x world size)).
    """
    training, world = config.training, config.topology.world_size
    needed = micro_steps(training.global_batch_size, training.per_device_train_batch_size, world)
    if training.gradient_accumulation_steps != needed:
        sizes = f"{training.global_batch_size} / ({training.per_device_train_batch_size} x {world})"
        raise ConfigError(
            "spec.training.gradientAccumulationSteps",
            training.gradient_accumulation_steps,
            f"must be {needed} = ceil({sizes}): globalBatchSize / (perDeviceTrainBatchSize x world size)",
            "omit the field: it follows from globalBatchSize",
        )


def in_micro_batches(slots: list[int | None], per_device: int, count: int) -> list[list[int | None]]:
    """Exactly ``count`` lists of ``per_device`` slots, filled up with None."""
    padded = slots + [None] * (count * per_device - len(slots))
    return [padded[start : start + per_device] for start in range(0, len(padded), per_device)]


def total_steps(training: Training, rows: int) -> int:
    """Optimizer steps of the run; a fraction of a batch at the end counts as a full one."""
    if training.max_steps is not None:
        return training.max_steps
    assert training.num_train_epochs is not None, "the contract allows exactly one of numTrainEpochs, maxSteps"
    return max(1, math.ceil(training.num_train_epochs * rows / training.global_batch_size))


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # Sorting raw keys: numpy keeps a bit generator's stream stable over versions, but not permutation()'s.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    return np.argsort(keys, kind="stable")
