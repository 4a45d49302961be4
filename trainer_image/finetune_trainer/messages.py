"""What a pod says: JSON lines on stdout while it runs, one termination message when it ends.

The operator treats all of it as untrusted input: it parses with these models, takes the last valid line and bounds
what it copies into a status. A termination message is at most 4096 bytes, the kubelet's limit per container.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from finetune_trainer.config import ContractModel, Digest

TERMINATION_MESSAGE_LIMIT = 4096

Phase = Literal[
    "model", "dataset", "fetch", "stage",  # prepare
    "rendezvous", "load", "baseline", "train", "evaluate", "publish",  # train
]  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class CheckpointRef(ContractModel):
    """A checkpoint that is complete: its manifest was written last."""

    step: int
    uri: str
    time: str = Field(default_factory=_now)


class Progress(ContractModel):
    """One line at least every 10 s from global rank 0."""

    kind: Literal["progress"] = "progress"
    time: str = Field(default_factory=_now)
    step: int
    """Completed optimizer steps."""
    total_steps: int
    epoch: float
    loss: float | None = None
    """Mean loss per label token of the last step (nats)."""
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    """Label and prompt tokens of all ranks."""
    estimated_remaining_seconds: float | None = None
    resumed_from_step: int | None = None
    """Step of the checkpoint this attempt started from; None when it started from scratch."""
    checkpoint: CheckpointRef | None = None


class PhaseLine(ContractModel):
    """Rank 0 enters a phase."""

    kind: Literal["phase"] = "phase"
    time: str = Field(default_factory=_now)
    phase: Phase


class WarningLine(ContractModel):
    """Something the user should know that did not stop the run."""

    kind: Literal["warning"] = "warning"
    time: str = Field(default_factory=_now)
    message: str


class Sample(ContractModel):
    """One evaluation prompt with the answer before and after training."""

    prompt: str
    before: str
    after: str


class PublishedResult(ContractModel):
    """The adapter as published; also the ``result`` line on stdout."""

    kind: Literal["result"] = "result"
    time: str = Field(default_factory=_now)
    uri: str
    digest: Digest
    """sha256 of adapter_model.safetensors."""
    metrics: dict[str, float]
    """baseEvalLoss, evalLoss, trainLoss, steps, seconds …"""


class UserFault(ContractModel):
    """An error that only the user can mend."""

    field: str
    """Path in the FineTuneJob, e.g. ``spec.dataset``."""
    value: str
    message: str
    remedy: str


class TrainTermination(ContractModel):
    """The last word of a trainer pod."""

    outcome: Literal["Succeeded", "Preempted", "Failed"]
    cause: str = ""
    """The name of the exit code's meaning, e.g. ``OutOfMemory``."""
    exit_code: int
    rank: int | None = None
    """Global rank that ended first, when one did."""
    step: int | None = None
    checkpoint: CheckpointRef | None = None
    message: str = ""
    """For an exception: the last line of the traceback."""
    fault: UserFault | None = None
    result: PublishedResult | None = None


class ModelFacts(ContractModel):
    """What prepare found out about the base model."""

    architecture: str
    parameters: int
    """Number of parameters in the safetensors headers."""
    weight_bytes: int
    dtype: str
    staged_uri: str
    revision: str = ""
    digest: Digest


class DatasetFacts(ContractModel):
    """What prepare found out about the dataset, after the split."""

    format: Literal["messages", "prompt-completion"]
    train_rows: int
    eval_rows: int
    train_tokens: int
    """Tokens of the text of all training rows, without the chat template's own."""
    eval_tokens: int
    longest_row_tokens: int
    train_uri: str
    eval_uri: str | None = None
    digest: Digest


class PrepareTermination(ContractModel):
    """The last word of the prepare pod."""

    outcome: Literal["Succeeded", "Preempted", "Failed"]
    cause: str = ""
    message: str = ""
    model: ModelFacts | None = None
    dataset: DatasetFacts | None = None
    result: PublishedResult | None = None
    """A result of the same run and data that was published before."""
    fault: UserFault | None = None
    warnings: list[str] = Field(default_factory=list, max_length=8)


Line = Progress | PhaseLine | WarningLine | PublishedResult
_LINES: dict[str, type[Line]] = {
    "progress": Progress,
    "phase": PhaseLine,
    "warning": WarningLine,
    "result": PublishedResult,
}


def parse_line(text: str) -> Line | None:
    """One line of a pod's log, or None when it is not one of ours (library output shares stdout)."""
    if not text.startswith("{"):
        return None
    try:
        raw: Any = json.loads(text)
        return _LINES[raw["kind"]].model_validate(raw)
    except (ValueError, KeyError, TypeError):
        return None


def fit_termination_message(message: TrainTermination | PrepareTermination) -> str:
    """JSON of at most ``TERMINATION_MESSAGE_LIMIT`` bytes; long texts are cut, the structure never is.

    Raises:
        ValueError: it does not fit even with all free text cut (the caller put too much into typed fields).
    """
    for limit in (2000, 800, 300, 100, 0):
        text = json.dumps(_cut(message.model_dump(mode="json", by_alias=True, exclude_none=True), limit))
        if len(text.encode()) <= TERMINATION_MESSAGE_LIMIT:
            return text
    raise ValueError(f"a termination message must fit into {TERMINATION_MESSAGE_LIMIT} bytes")


_FREE_TEXT = {"message", "value", "remedy", "warnings"}


def _cut(value: Any, limit: int, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _cut(item, limit, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, limit, key) for item in value]
    if isinstance(value, str) and key in _FREE_TEXT and len(value.encode()) > limit:
        return value.encode()[: max(limit - 1, 0)].decode(errors="ignore") + "…" if limit else ""
    return value
