"""What a pod says: JSON lines on stdout while it runs, one termination message when it ends.

The operator treats all of it as untrusted input: it parses with these models, takes the last valid line and bounds
what it copies into a status. A termination message is at most 4096 bytes, the kubelet's limit per container.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, field_validator

from finetune_trainer.config import ContractModel, Digest

TERMINATION_MESSAGE_LIMIT = 4096

Phase = Literal[
    "model", "dataset", "fetch", "stage",  # prepare
    "rendezvous", "load", "baseline", "train", "evaluate", "publish",  # train
]  # fmt: skip


# Bounds of what may enter a status: a message beyond them is none of ours.
Count = Annotated[int, Field(ge=0, lt=10**15)]
Uri = Annotated[str, Field(max_length=1024)]
Time = Annotated[str, Field(max_length=40)]
"""When the sender said it; empty where it does not know. Never filled in by the reader, who parses without a clock."""


class Message(ContractModel):
    """What a later trainer adds is passed over: an operator that was rolled back understands the rest."""

    model_config = ConfigDict(extra="ignore")


class CheckpointRef(Message):
    """A checkpoint that is complete: its manifest was written last."""

    step: Count
    uri: Uri
    time: Time = ""
    """When it was complete; empty when an earlier attempt wrote it."""


class Progress(Message):
    """One line at least every 10 s from global rank 0."""

    kind: Literal["progress"] = "progress"
    time: Time = ""
    step: Count
    """Completed optimizer steps."""
    total_steps: Count
    epoch: float
    loss: float | None = None
    """Mean loss per label token of the last step (nats)."""
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    """Label and prompt tokens of all ranks."""
    estimated_remaining_seconds: float | None = None
    resumed_from_step: Count | None = None
    """Step of the checkpoint this attempt started from; None when it started from scratch."""
    checkpoint: CheckpointRef | None = None
    strategy: str = Field(default="", max_length=32)
    """How the model is spread in fact, e.g. ``FSDP``; another than planned after a failed self-test."""
    warning: str = Field(default="", max_length=300)
    """The newest warning: its own line may scroll away before somebody reads the log."""


class PhaseLine(Message):
    """Rank 0 enters a phase."""

    kind: Literal["phase"] = "phase"
    time: Time = ""
    phase: Phase


class WarningLine(Message):
    """Something the user should know that did not stop the run."""

    kind: Literal["warning"] = "warning"
    time: Time = ""
    message: str


class Sample(Message):
    """One evaluation prompt with the answer before and after training."""

    prompt: str
    before: str
    after: str


class PublishedResult(Message):
    """The adapter as published; also the ``result`` line on stdout."""

    kind: Literal["result"] = "result"
    time: Time = ""
    """When it was published; in a termination message empty when an earlier attempt did it."""
    uri: Uri
    digest: Digest
    """sha256 of adapter_model.safetensors."""
    metrics: dict[Annotated[str, Field(max_length=64)], float] = Field(max_length=32)
    """baseEvalLoss, evalLoss, trainLoss, steps, seconds …; what is not a finite number is left out: JSON has none."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite_only(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: number
            for name, number in value.items()
            if number is not None and not (isinstance(number, float) and not math.isfinite(number))
        }


class UserFault(Message):
    """An error that only the user can mend."""

    field: str
    """Path in the FineTuneJob, e.g. ``spec.dataset``, or a variable of the pod's environment."""
    value: str
    message: str
    remedy: str


class MemoryPicture(Message):
    """Where the memory went, when it ran out."""

    phase: str = Field(max_length=64)
    """What was being done, e.g. ``dry step`` or ``step 17``."""
    longest_tokens: Count | None = None
    """Tokens of the longest sequence of the micro-batch."""
    device_allocated_bytes: Count | None = None
    """Peak of what torch's tensors took; None without CUDA."""
    device_reserved_bytes: Count | None = None
    """Peak of what torch held from the driver."""
    device_total_bytes: Count | None = None
    host_peak_bytes: Count | None = None
    """Peak resident memory of the process."""
    host_limit_bytes: Count | None = None
    """Limit of the container; None when it has none."""


class TrainTermination(Message):
    """The last word of a trainer pod."""

    outcome: Literal["Succeeded", "Preempted", "Failed"]
    cause: str = ""
    """The name of the exit code's meaning, e.g. ``OutOfMemory``."""
    exit_code: int
    rank: int | None = None
    """Global rank that ended first, when one did; with cause ``PeerLost`` the rank that was lost, where known."""
    step: Count | None = None
    resumed_from_step: Count | None = None
    """Step of the checkpoint this attempt started from; None when it started from scratch, or did not get that far."""
    checkpoint: CheckpointRef | None = None
    message: str = ""
    """For an exception: the last line of the traceback."""
    fault: UserFault | None = None
    memory: MemoryPicture | None = None
    """With cause ``OutOfMemory``."""
    result: PublishedResult | None = None
    strategy: str | None = Field(default=None, max_length=32)
    """From the pod of rank 0, as its last progress line had it …"""
    warning: str | None = Field(default=None, max_length=300)
    """… and the same of its newest warning."""


class ModelFacts(Message):
    """What prepare found out about the base model."""

    architecture: str = Field(max_length=128)
    parameters: Count
    """Number of parameters in the safetensors headers."""
    weight_bytes: Count
    dtype: str = Field(max_length=16)
    staged_uri: Uri
    revision: str = Field(default="", max_length=64)
    digest: Digest


class DatasetFacts(Message):
    """What prepare found out about the dataset, after the split."""

    format: Literal["messages", "prompt-completion"]
    train_rows: Count
    eval_rows: Count
    train_tokens: Count
    """Tokens of all training rows as the trainer renders them, before it cuts them at maxLength."""
    eval_tokens: Count
    """The same of the held-out rows."""
    longest_row_tokens: Count
    """Of both; beyond maxLength it is cut."""
    train_uri: Uri
    eval_uri: Uri | None = None
    packs_uri: Uri | None = None
    """With ``packing``: which rows share a sequence."""
    train_packs: Count | None = None
    digest: Digest


class PrepareTermination(Message):
    """The last word of the prepare pod."""

    outcome: Literal["Succeeded", "Preempted", "Failed"]
    cause: str = ""
    message: str = ""
    model: ModelFacts | None = None
    dataset: DatasetFacts | None = None
    result: PublishedResult | None = None
    """A result of the same run, data and base model that was published before."""
    fault: UserFault | None = None
    warnings: list[str] = Field(default_factory=list, max_length=8)


Line = Progress | PhaseLine | WarningLine | PublishedResult
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def parse_line(text: str) -> Line | None:
    """One line of a pod's log, or None when it is not one of ours (library output shares stdout)."""
    if not text.startswith("{"):
        return None
    try:
        return _LINE.validate_json(text)
    except ValueError:
        return None


def fit_termination_message(message: TrainTermination | PrepareTermination) -> str:
    """JSON of at most ``TERMINATION_MESSAGE_LIMIT`` bytes; long texts are cut, the structure never is.

    Raises:
        ValueError: it does not fit even with all free text cut (the caller put too much into typed fields).
    """
    for limit in (2000, 800, 300, 100, 0):
        text = json.dumps(_cut(message.model_dump(by_alias=True, exclude_none=True), limit))
        if len(text) <= TERMINATION_MESSAGE_LIMIT:
            return text
    raise ValueError(f"a termination message must fit into {TERMINATION_MESSAGE_LIMIT} bytes")


_FREE_TEXT = {"message", "value", "remedy", "warning", "warnings"}


def _cut(value: Any, limit: int, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _cut(item, limit, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, limit, key) for item in value]
    if isinstance(value, str):
        # A file name that is no UTF-8 arrives here with lone surrogates, which JSON cannot carry.
        raw = value.encode(errors="replace")
        if key in _FREE_TEXT and len(raw) > limit:
            return raw[: max(limit - 1, 0)].decode(errors="ignore") + "…" if limit else ""
        return raw.decode()
    return value
