"""The number format that is computed in."""

from __future__ import annotations

from typing import Literal

from finetune_operator.api.job import Training
from finetune_operator.api.runtime import Pool


def resolve_precision(training: Training, pool: Pool) -> Literal["fp32", "bf16"]:
    """The user's, or what the pool's device is quick in."""
    return training.precision or ("bf16" if pool.device == "cuda" else "fp32")
