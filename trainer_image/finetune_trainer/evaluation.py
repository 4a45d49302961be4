"""Measure a model: mean loss on held-out rows over all ranks, and greedy answers to a few prompts by rank 0.

Both poll for SIGTERM, per batch and per token, and the ranks agree each time; so a stop ends them within
moments on every rank, and ranks that only wait for rank 0's answers are never stuck in a long barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field, ValidationError

from finetune_trainer.config import ContractModel, Digest
from finetune_trainer.data import Dataset, pad_token_id, render_prompt
from finetune_trainer.loss import token_loss_sum
from finetune_trainer.sampler import in_micro_batches, micro_steps
from finetune_trainer.store import Store
from finetune_trainer.world import World

BASELINE = "baseline.json"
Poll = Callable[[], None]
"""Collective; raises PreemptedError on every rank when one was told to stop."""


class Measurement(ContractModel):
    """What one model scores."""

    eval_loss: float | None = None
    """Mean loss per label token of the held-out rows (nats); None without held-out rows."""
    answers: list[str] = Field(default_factory=list)
    """One per evaluation prompt."""


class Baseline(Measurement):
    """A measurement of the base model, as it is kept for later attempts."""

    model_digest: Digest


def find_baseline(store: Store, model_digest: str, warn: Callable[[str], None]) -> bytes:
    """Rank 0: the measurement of an earlier attempt as stored, or nothing when none can be used."""
    text = store.read(BASELINE)
    if text is None:
        return b""
    try:
        found = Baseline.model_validate_json(text)
    except ValidationError:
        found = None
    if found is not None and found.model_digest == model_digest:
        return text
    problem = "is of another base model" if found is not None else "is damaged"
    warn(f"{BASELINE} {problem}: the base model is measured again")
    return b""


@torch.no_grad()
def evaluation_loss(model: Any, dataset: Dataset, per_device: int, world: World, poll: Poll) -> float:
    """Mean loss per label token over all rows; collective."""
    slots: list[int | None] = list(range(world.rank, len(dataset), world.size))
    loss = torch.zeros((), dtype=torch.float64, device=world.device)
    tokens = 0
    for rows in in_micro_batches(slots, per_device, micro_steps(len(dataset), per_device, world.size)):
        poll()
        batch = dataset.batch(rows)
        loss += token_loss_sum(model, batch, world.device)
        tokens += batch.label_tokens
    total_loss, total_tokens = world.sum(float(loss), tokens)
    return total_loss / max(total_tokens, 1)


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    max_new_tokens: int,
    conversational: bool,
    world: World,
    poll: Poll,
    together: bool,
) -> list[str]:
    """Rank 0's answers; collective.

    ``together``: no rank can compute alone, so all generate the same in lockstep. Else the others wait.
    """
    if not prompts:
        return []
    texts = [render_prompt(prompt, tokenizer, conversational) for prompt in prompts]
    if together:
        return [_answer(model, tokenizer, text, max_new_tokens, world, poll) for text in texts]
    if not world.is_main:
        while _rank_0_is_busy(world, False, poll):
            pass
        return []

    def beat() -> None:
        _rank_0_is_busy(world, True, poll)

    answers = [_answer(model, tokenizer, text, max_new_tokens, world, beat) for text in texts]
    poll()
    world.any(False)
    return answers


def _rank_0_is_busy(world: World, busy: bool, poll: Poll) -> bool:
    poll()
    return world.any(busy)


@torch.no_grad()
def _answer(model: Any, tokenizer: Any, text: str, max_new_tokens: int, world: World, beat: Poll) -> str:
    """``beat`` is called after every token."""
    from transformers import GenerationConfig, StoppingCriteriaList

    def keep_going(_ids: Any, _scores: Any, **_unused: Any) -> torch.Tensor:
        beat()
        return torch.zeros(1, dtype=torch.bool, device=world.device)

    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(world.device)
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=pad_token_id(tokenizer),
            use_cache=True,
        ),
        stopping_criteria=StoppingCriteriaList([keep_going]),
    )
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new_tokens, skip_special_tokens=True))
