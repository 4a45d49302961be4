"""Conditions as Kubernetes writes them: the transition time moves only when the status does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from finetune_operator.api.base import ApiModel

MESSAGE_LIMIT = 2048


class Condition(ApiModel):
    """One condition, shaped like metav1.Condition."""

    type: str = Field(
        max_length=64, pattern=r"^[A-Z][A-Za-z]*$", description="Type of the condition. Required. Example: Complete."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown. Required. Example: True.")
    reason: str = Field(
        max_length=64,
        pattern=r"^[A-Z][A-Za-z]*$",
        description="Documented constant. Required. Example: RuntimeNotFound.",
    )
    message: str = Field(
        default="",
        max_length=MESSAGE_LIMIT,
        description="For people: what happened, what comes next. Default: empty. Example: the model is being checked.",
    )
    last_transition_time: datetime = Field(
        description="When the status last changed. Required. Example: 2026-05-01T12:00:00Z."
    )
    observed_generation: int = Field(
        default=0, description="metadata.generation it was decided on. Default: 0. Example: 1."
    )


def set_condition(conditions: Sequence[Condition], new: Condition) -> tuple[Condition, ...]:
    """``conditions`` with ``new`` in its place; the time of the old one is kept when the status did not change."""
    result: list[Condition] = []
    placed = False
    for old in conditions:
        if old.type != new.type:
            result.append(old)
            continue
        placed = True
        kept = old.last_transition_time if old.status == new.status else new.last_transition_time
        result.append(new.model_copy(update={"last_transition_time": kept}))
    if not placed:
        result.append(new)
    return tuple(result)


def find_condition(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of that type, if it was ever set."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Whether the condition is there with status True."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status == "True"
