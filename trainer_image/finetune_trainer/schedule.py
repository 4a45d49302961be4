"""The learning rate as a pure function of the step, equal to ``transformers.get_scheduler``.

A pure function has no state to save, and no order of calls (``scheduler.step()`` before or after) to get
wrong. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune_trainer.config import Training


def learning_rate(training: Training, step: int, total_steps: int) -> float:
    """The rate of optimizer step ``step``, counted from 0."""
    warmup = training.warmup_steps if training.lr_scheduler_type != "constant" else 0
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return training.learning_rate * _DECAYS[training.lr_scheduler_type](min(progress, 1.0))


_DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _progress: 1.0,
    "constant_with_warmup": lambda _progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
