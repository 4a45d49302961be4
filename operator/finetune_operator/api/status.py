"""The status of a FineTuneJob: what was observed, what was decided, what comes next.

Lists are bounded; totals are fields of their own, so that a thousand attempts cost no more room than ten. All texts
that come from a pod are cut before they are stored.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_operator.api.base import ApiModel, doc
from finetune_operator.api.conditions import Condition

Text = Annotated[str, Field(max_length=2048)]
_URI_LIMIT = 1536
"""A pod's URI of 1024 characters in which the mount's name became the claim's."""
_MAP: dict[str, Any] = {"maxProperties": 32}


class RunStatus(ApiModel):
    """The run in progress or finished."""

    id: str = doc("spec.runId of this run.", default="", example="2026-05-01", max_length=63)
    digest: str = doc(
        "sha256 of everything that decides the result, from the snapshot taken at acceptance.",
        example="9f2b…",
        max_length=64,
    )
    first_attempt: int = doc(
        "Number of its first attempt; those before it belong to runs that were given up.", default=0, example=1
    )
    accepted_time: datetime | None = doc("When the snapshot was taken.", default=None, example="2026-05-01T12:00:00Z")


class ModelFactsStatus(ApiModel):
    """What prepare found out about the model."""

    architecture: str = doc("Model class.", example="LlamaForCausalLM", max_length=128)
    parameters: int = doc("Number of parameters.", example=134515008)
    weight_bytes: int = doc("Size of the weight files.", unit="bytes", example=269060552)
    dtype: str = doc("Number format of the weight files.", example="BF16", max_length=16)
    staged_uri: str = doc("Where the trainer reads it.", example="file:///mnt/finetune/model/m", max_length=1024)
    revision: str = doc("Commit of a Hub model.", default="", example="12fd25f", max_length=64)
    digest: str = doc("Digest of the files.", example="1b4f…", max_length=64)


class DatasetFactsStatus(ApiModel):
    """What prepare found out about the dataset."""

    format: str = doc("messages or prompt-completion.", example="messages", max_length=32)
    train_rows: int = doc("Rows to train on.", unit="rows", example=216)
    eval_rows: int = doc("Rows held out.", unit="rows", example=24)
    train_tokens: int = doc("Tokens of the training rows.", unit="tokens", example=11880)
    eval_tokens: int = doc("Tokens of the held-out rows.", unit="tokens", example=1320)
    longest_row_tokens: int = doc("Longest row.", unit="tokens", example=74)
    train_uri: str = doc("Where the trainer reads the rows.", example="file:///mnt/…/train.jsonl", max_length=1024)
    eval_uri: str | None = doc(
        "Where the trainer reads the held-out rows.", default=None, example="file:///mnt/…/eval.jsonl", max_length=1024
    )
    packs_uri: str | None = doc(
        "Where the trainer reads which rows share a sequence.",
        default=None,
        automatic="one row per sequence",
        example="file:///mnt/…/packs.json",
        max_length=1024,
    )
    train_packs: int | None = doc(
        "Sequences to train on, when rows are packed.", unit="sequences", default=None, example=31
    )
    digest: str = doc("Digest of the content after the split.", example="77ac…", max_length=64)

    @property
    def is_packed(self) -> bool:
        """Whether prepare has said both where the packs are and how many."""
        return bool(self.packs_uri) and bool(self.train_packs)

    @property
    def train_items(self) -> int:
        """What a batch counts: sequences where rows are packed, else rows."""
        return self.train_packs if self.is_packed and self.train_packs else self.train_rows


class FactsStatus(ApiModel):
    """What the CPU stage found out before any GPU was held."""

    model: ModelFactsStatus = doc("The base model.", example={"parameters": 134515008})
    dataset: DatasetFactsStatus = doc("The dataset.", example={"trainRows": 216})


class PlanStatus(ApiModel):
    """Resolved numbers of the newest attempt."""

    model: str = doc("Short name of the base model.", example="smollm2-135m-instruct", max_length=512)
    method: str = doc("The method in one word.", example="lora", max_length=64)
    strategy: str = doc(
        "How the model is spread over the ranks; single: there is one rank.", example="DDP", max_length=32
    )
    pool: str = doc("Pool of the runtime.", example="default", max_length=63)
    nodes: int = doc("Number of pods.", example=2)
    gpus_per_node: int = doc("Processes per pod.", example=1)
    per_device_train_batch_size: int = doc("Rows per forward pass.", unit="rows", example=4)
    gradient_accumulation_steps: int = doc("Forward passes per optimizer step.", example=1)
    global_batch_size: int | None = doc(
        "Rows per optimizer step over all GPUs; the same for every attempt.",
        unit="rows",
        default=None,
        automatic="not recorded by an earlier version",
        example=16,
    )
    gradient_checkpointing: bool = doc(
        "Whether activations are computed again in the backward pass; also set after running out of memory.",
        default=False,
        example=True,
    )
    total_steps: int | None = doc(
        "Optimizer steps of the run.",
        unit="steps",
        default=None,
        automatic="unknown until the rows are counted",
        example=60,
    )


class ProgressStatus(ApiModel):
    """The newest line of the rank that reports, at most 30 s old."""

    progress_percentage: int = doc("Steps done.", unit="percent", default=0, example=42)
    step: int = doc("Completed optimizer steps.", unit="steps", default=0, example=25)
    total_steps: int = doc("Optimizer steps of the run.", unit="steps", default=0, example=60)
    steps: str = doc("Both for the column.", default="", example="25/60", max_length=32)
    epoch: float | None = doc("Passes over the data.", default=None, example=0.93)
    phase: str = doc("What the gang is doing.", default="", example="train", max_length=32)
    strategy: str = doc(
        "How the model is spread in fact; another than plan.strategy when that one failed its self-test.",
        default="",
        example="FSDP",
        max_length=32,
    )
    warning: str = doc(
        "The newest warning of the gang.",
        default="",
        example="FSDP failed its self-test with 4-bit weights; DDP is used",
        max_length=300,
    )
    loss: float | None = doc("Training loss per token of the last step.", unit="nats", default=None, example=1.62)
    eval_loss: float | None = doc("Loss on the held-out rows.", unit="nats", default=None, example=1.71)
    learning_rate: float | None = doc("Current learning rate.", default=None, example=0.0001)
    tokens_per_second: float | None = doc("Speed of the gang.", unit="tokens/s", default=None, example=350)
    estimated_remaining_seconds: int | None = doc("Time to the last step.", unit="seconds", default=None, example=80)
    last_updated_time: datetime | None = doc("When the line was written.", default=None, example="2026-05-01T12:01:00Z")


class PlacementStatus(ApiModel):
    """Which placement the next attempt goes to."""

    candidate: int = doc(
        "Its number, from 0 on: spec.placement in its order, each entry without a pool standing for all pools that are "
        "large enough.",
        default=0,
        example=1,
    )
    interruptions: int = doc("Lost nodes and preemptions there.", unit="interruptions", default=0, example=2)
    rounds: int = doc("How often all placements were tried in vain.", default=0, example=1)
    waiting_since: datetime | None = doc(
        "Since when another job's pods, which wait for nodes of the same pool, are let go first.",
        default=None,
        example="2026-05-01T12:00:00Z",
    )


class AvoidedNode(ApiModel):
    """A node that did the run harm."""

    name: str = doc("Name of the node.", example="node-2", max_length=253)
    until: datetime = doc("When it is forgiven.", example="2026-05-01T12:30:00Z")


class CheckpointStatus(ApiModel):
    """The newest complete checkpoint."""

    step: int = doc("Completed steps in it.", unit="steps", example=25)
    uri: str = doc("Where it lies.", example="pvc://finetune-storage/checkpoints/…", max_length=_URI_LIMIT)
    time: datetime | None = doc("When it was complete.", default=None, example="2026-05-01T12:01:00Z")


class AttemptStatus(ApiModel):
    """One gang."""

    number: int = doc("From 1 on, never used twice.", example=2)
    run: str = doc("First characters of the run's digest.", default="", example="9f2b4c1a77de", max_length=12)
    placement: str = doc("Pool, nodes and GPUs.", default="", example="default 2x1", max_length=128)
    start_time: datetime | None = doc(
        "When its Job began, or was last admitted by its queue.", default=None, example="2026-05-01T12:01:00Z"
    )
    end_time: datetime | None = doc("When its end was seen.", default=None, example="2026-05-01T12:09:00Z")
    cause: str = doc("Why it ended; empty for a success.", default="", example="Preempted", max_length=32)
    exit_code: int | None = doc("Exit code of the pod that ended it.", default=None, example=75)
    node: str = doc("Node of that pod.", default="", example="node-2", max_length=253)
    rank: int | None = doc("Index of that pod in the gang.", default=None, example=1)
    lost_rank: int | None = doc("Global rank that its peers lost, when they named one.", default=None, example=3)
    bound_time: datetime | None = doc(
        "When its pods got their nodes, on average.", default=None, example="2026-05-01T12:01:10Z"
    )
    bound_pods: int = doc("How many of its pods got a node.", default=0, example=2)
    gpu_seconds: int | None = doc(
        "GPU time from getting the nodes until the pods were gone.",
        unit="GPU-seconds",
        default=None,
        automatic="not known before its pods are gone",
        example=960,
    )
    lost_seconds: int | None = doc(
        "Time from its last checkpoint (or from getting nodes) until its pods were gone: what has to be done again.",
        unit="seconds",
        default=None,
        automatic="not known before its pods are gone",
        example=31,
    )
    replanned: bool = doc("The next attempt needs less memory than this one.", default=False, example=True)
    traceback: str = doc(
        "Last line of the exception that ended it.", default="", example="RuntimeError: bad row", max_length=512
    )
    step_from: int | None = doc("Step it started from.", unit="steps", default=None, example=20)
    step_to: int | None = doc("Last completed step that is known.", unit="steps", default=None, example=41)
    message: Text = doc("What is known about its end.", default="", example="evicted: EvictionByEvictionAPI")


class TotalsStatus(ApiModel):
    """Sums over all attempts of the FineTuneJob, also of those no longer listed."""

    attempts: int = doc("Number of the newest attempt.", default=0, example=2)
    by_cause: dict[Annotated[str, Field(max_length=32)], int] = doc(
        "Ended attempts by cause.", default={}, automatic="{}", example={"Preempted": 1}, extra=_MAP
    )
    failures: int = doc("Failures of this run that count against backoffLimit.", default=0, example=0)
    without_progress: int = doc(
        "Ended attempts of this run in a row that saved no new checkpoint; from the second on the next one waits.",
        unit="attempts",
        default=0,
        example=0,
    )
    checkpoint_step: int = doc(
        "Step of the newest checkpoint of the attempts that ended.", unit="steps", default=0, example=25
    )
    replans: int = doc(
        "How often the plan of this run was made safer after it ran out of memory.", default=0, example=1
    )
    active_seconds: int = doc(
        "Time that ended attempts of this run counted against activeDeadlineSeconds.",
        unit="seconds",
        default=0,
        example=480,
    )
    gpu_seconds: int = doc(
        "GPU time held, from getting the nodes until the pods were gone.", unit="GPU-seconds", default=0, example=960
    )
    lost_gpu_seconds: int = doc(
        "Part of it that ended attempts held after their last checkpoint.",
        unit="GPU-seconds",
        default=0,
        example=62,
    )
    goodput_percent: float | None = doc(
        "Part of the GPU time that was not lost.",
        unit="percent",
        default=None,
        automatic="none, before the first attempt has ended",
        example=93.5,
    )
    cost: float | None = doc(
        "GPU time at the price of its pool.",
        unit="the currency of pricePerGpuHour",
        default=None,
        automatic="none, where pools have no price",
        example=0.67,
    )


class ResultStatus(ApiModel):
    """The published result."""

    uri: str = doc(
        "Folder of the adapter, or of the model with method full.",
        example="pvc://finetune-storage/output/…",
        max_length=_URI_LIMIT,
    )
    digest: str = doc("sha256 of adapter_model.safetensors.", example="0c7e…", max_length=64)
    metrics: dict[Annotated[str, Field(max_length=64)], float] = doc(
        "What was measured.",
        default={},
        automatic="{}",
        example={"baseEvalLoss": 3.9, "evalLoss": 1.7},
        extra=_MAP,
    )


class FineTuneJobStatus(ApiModel):
    """What the operator observed and decided."""

    observed_generation: int = Field(
        default=-1,
        description="metadata.generation of the spec this status speaks of. "
        "Default: -1, until the first look, so that GitOps tools do not take a new job for a finished one. Example: 1.",
    )
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Accepted, Reconciling, Stalled, Running, SpecDrifted, Complete, Failed. Default: []. "
        "Example: [{type: Complete, status: True}].",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    phase: Literal[
        "", "Pending", "Preparing", "Queued", "Running", "Interrupted", "Suspended", "Complete", "Failed"
    ] = Field(
        default="",
        description="One word for the Status column; programs read the conditions. Default: empty. Example: Running.",
    )
    message: Text = doc("What happened and what comes next.", default="", example="attempt 2 resumes from step 25")
    run: RunStatus | None = doc("The run in progress or finished.", default=None, example={"digest": "9f2b…"})
    facts: FactsStatus | None = doc("What was found out before training.", default=None, example={})
    plan: PlanStatus | None = doc("Resolved numbers of the newest attempt.", default=None, example={"strategy": "DDP"})
    progress: ProgressStatus | None = doc("How far it is.", default=None, example={"step": 25})
    placement: PlacementStatus = doc(
        "Which placement is used, and how it went.",
        default=PlacementStatus(),
        automatic="the first",
        example={"candidate": 1},
    )
    avoided_nodes: list[AvoidedNode] = doc(
        "Nodes that the next attempts keep away from where others are free.",
        default=[],
        automatic="[]",
        example=[{"name": "node-2", "until": "2026-05-01T12:30:00Z"}],
        max_length=4,
    )
    checkpoint: CheckpointStatus | None = doc("The newest complete checkpoint.", default=None, example={"step": 25})
    attempts: list[AttemptStatus] = doc(
        "The newest attempts, oldest first.",
        default=[],
        automatic="[]",
        example=[{"number": 1, "cause": "Preempted"}],
        max_length=10,
    )
    totals: TotalsStatus = doc(
        "Sums over all attempts.", default=TotalsStatus(), automatic="zeros", example={"attempts": 2}
    )
    result: ResultStatus | None = doc("The published adapter.", default=None, example={"uri": "pvc://…"})
