"""The number format."""

from __future__ import annotations

import pytest

from finetune_operator.core.planner.precision import resolve_precision
from makers import a_job, a_pool, a_runtime

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [(None, "cuda", "bf16"), (None, "cpu", "fp32"), ("fp32", "cuda", "fp32"), ("bf16", "cpu", "bf16")],
)
def test_precision_is_the_users_or_the_devices(asked: str | None, device: str, expected: str) -> None:
    """bf16 is slow on a CPU."""
    job = a_job().with_training(**({"precision": asked} if asked else {}))
    assert resolve_precision(job.spec().training, a_runtime(a_pool(device=device)).pools[0]) == expected
