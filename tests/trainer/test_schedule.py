"""The learning rate is transformers', without its state."""

from __future__ import annotations

import pytest

from finetune_trainer.config import Training
from finetune_trainer.schedule import learning_rate

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_it_equals_transformers(name: str, warmup_steps: int) -> None:
    """Every step of every schedule."""
    import torch
    from transformers import get_scheduler

    training = Training.model_validate(
        {
            "max_steps": 10,
            "learning_rate": 0.5,
            "lr_scheduler_type": name,
            "warmup_steps": warmup_steps,
            "global_batch_size": 1,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
        }
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=10)
    expected = []
    for _ in range(10):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

    assert [learning_rate(training, step, 10) for step in range(10)] == pytest.approx(expected)
