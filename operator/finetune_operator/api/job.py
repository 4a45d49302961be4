"""FineTuneJob: what the user asks for and what the operator answers.

Hyper-parameters carry Hugging Face's names in camelCase. A field is here only when it works.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_operator.api.base import ApiModel, Rule, doc, rules
from finetune_operator.api.locations import (
    CHECKPOINT_RULES,
    DATA_RULES,
    DataLocation,
    ModelLocation,
    WritableLocation,
)
from finetune_operator.api.methods import METHODS, Method
from finetune_operator.api.pod_metadata import PodMetadata, PriorityClassName
from finetune_operator.api.status import FineTuneJobStatus
from finetune_trainer.config import MethodName, StrategyName

NAME_LIMIT = 45
"""A job's name becomes the first part of its pods' hostnames, which have 63 characters."""

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""It becomes a Service as well, whose name begins with a letter and has no dots."""

DEFAULT_EPOCHS = 3.0
"""What ``num_train_epochs`` of transformers defaults to."""

Prompt = Annotated[str, Field(min_length=1, max_length=2048)]


class RuntimeReference(ApiModel):
    """The FineTuneRuntime, which the platform team owns."""

    name: str = doc(
        "Name of a FineTuneRuntime.",
        default="default",
        example="default",
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    )


class Dataset(DataLocation):
    """The training rows and how they are held against the model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *DATA_RULES,
            Rule(
                "!(has(self.eval) && has(self.evalFraction))",
                "must have at most one of: eval, evalFraction",
            ),
        )
    )

    eval: DataLocation | None = doc(
        "Held-out rows in a file of their own; excludes evalFraction.",
        default=None,
        automatic="no held-out file",
        example={"persistentVolumeClaim": {"claimName": "datasets", "path": "support-eval.jsonl"}},
    )
    eval_fraction: float | None = doc(
        "Part of the rows to hold out for evaluation, chosen by the seed; excludes eval.",
        default=None,
        automatic="0, nothing is held out",
        example=0.1,
        ge=0,
        le=0.9,
    )
    max_length: int = doc(
        "Longest sequence; longer rows are cut at the end, and a warning counts them.",
        unit="tokens",
        default=2048,
        example=2048,
        ge=8,
        le=1048576,
    )
    packing: bool = doc(
        "Lay several rows into one sequence of maxLength tokens; globalBatchSize and perDeviceTrainBatchSize then "
        "count sequences.",
        default=False,
        example=True,
    )


class Training(ApiModel):
    """Hyper-parameters, with the names of transformers' TrainingArguments."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(has(self.numTrainEpochs) && has(self.maxSteps))",
                "must have at most one of: numTrainEpochs, maxSteps",
            ),
            Rule(
                "!(has(self.perDeviceTrainBatchSize) && has(self.globalBatchSize)) "
                "|| self.perDeviceTrainBatchSize <= self.globalBatchSize",
                "perDeviceTrainBatchSize must not exceed globalBatchSize",
            ),
        )
    )

    num_train_epochs: float | None = doc(
        "Passes over the training rows; excludes maxSteps.",
        unit="epochs",
        default=None,
        automatic="3, when maxSteps is omitted",
        example=3,
        gt=0,
        le=1000,
    )
    max_steps: int | None = doc(
        "Number of optimizer steps; excludes numTrainEpochs.",
        unit="steps",
        default=None,
        automatic="numTrainEpochs decides",
        example=500,
        ge=1,
        le=10_000_000,
    )
    learning_rate: float = doc(
        "Peak learning rate. Write 2.0e-4: YAML reads 2e-4 as a string.",
        default=2.0e-4,
        example="2.0e-4",
        gt=0,
        le=1,
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = doc(
        "Shape of the learning rate after the warm-up.", default="linear", example="cosine"
    )
    warmup_steps: int = doc(
        "Steps in which the learning rate rises from 0 to its peak.",
        unit="steps",
        default=0,
        example=10,
        ge=0,
        le=1_000_000,
    )
    weight_decay: float = doc("Decoupled weight decay of AdamW.", default=0.0, example=0.01, ge=0, le=1)
    optim: str = doc(
        "The optimizer: adamw_torch or adamw_torch_fused, whose state fits any strategy and any number of GPUs.",
        default="adamw_torch",
        example="adamw_torch_fused",
        min_length=1,
        max_length=64,
        pattern=r"^[a-z0-9_]+$",
    )
    global_batch_size: int = doc(
        "Rows (with dataset.packing: sequences) per optimizer step over all GPUs. It stays the same whatever GPUs an "
        "attempt gets.",
        unit="rows",
        default=16,
        example=64,
        ge=1,
        le=65536,
    )
    per_device_train_batch_size: int | None = doc(
        "Rows (with dataset.packing: sequences) per forward pass on one GPU; the rest of the global batch is "
        "accumulated.",
        unit="rows",
        default=None,
        automatic="the smaller of 4 and globalBatchSize / GPUs",
        example=4,
        ge=1,
        le=4096,
    )
    max_grad_norm: float = doc(
        "Gradients are scaled down to this norm; 0 = off.", default=1.0, example=1.0, ge=0, le=1e6
    )
    precision: Literal["fp32", "bf16"] | None = doc(
        "Number format that is computed in, and that a frozen base model is held in; what is trained and its optimizer "
        "state stay fp32.",
        default=None,
        automatic="bf16 on a cuda pool; fp32 on a cpu pool, where bf16 is slow",
        example="bf16",
    )
    gradient_checkpointing: bool = doc(
        "Recompute activations in the backward pass: less memory, about a third more time.",
        default=False,
        example=True,
    )
    seed: int = doc(
        "Seed of the split, the data order, the adapter's initial weights and dropout.",
        default=42,
        example=42,
        ge=0,
        le=4294967295,
    )
    deterministic: bool = doc(
        "Use deterministic kernels: the same topology gives bitwise the same losses, also after a resume.",
        default=False,
        example=True,
    )

    @property
    def resolved_epochs(self) -> float | None:
        """``numTrainEpochs`` or its default; None when ``maxSteps`` decides."""
        if self.max_steps is not None:
            return None
        return self.num_train_epochs if self.num_train_epochs is not None else DEFAULT_EPOCHS


class Placement(ApiModel):
    """The GPUs of one gang."""

    pool: str | None = doc(
        "Name of a pool of the runtime.",
        default=None,
        automatic="every pool of the runtime that is large enough, the cheapest first",
        example="a100-spot",
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    )
    nodes: int = doc("Number of nodes, one pod each.", default=1, example=2, ge=1, le=1024)
    gpus_per_node: int = doc(
        "GPUs of each pod, one process each; in a pool with device cpu the number of processes.",
        default=1,
        example=8,
        ge=1,
        le=16,
    )
    schedule_timeout_seconds: int = doc(
        "How long all pods together may wait for nodes. Then they are removed, and the next placement is tried; after "
        "the last one the first again.",
        unit="seconds",
        default=900,
        example=600,
        ge=5,
        le=604800,
    )
    max_interruptions: int | None = doc(
        "How many lost nodes and preemptions are borne here before the next placement is used, e.g. on-demand nodes "
        "after spot nodes.",
        unit="interruptions",
        default=None,
        automatic="any number",
        example=3,
        ge=1,
        le=1000,
    )


class Distributed(ApiModel):
    """How the model is spread over the GPUs of a gang."""

    strategy: StrategyName | None = doc(
        "DDP: everything on every GPU. FSDP: parameters, gradients and optimizer state sharded (PyTorch's "
        "fully_shard). ZeRO2: gradients and optimizer state sharded; ZeRO3: parameters too (DeepSpeed).",
        default=None,
        automatic="DDP with lora and qlora; FSDP with full on several GPUs, and with cpuOffload",
        example="FSDP",
    )
    cpu_offload: bool = doc(
        "Hold shards and optimizer state in the nodes' memory instead of the GPUs' (ZeRO2: optimizer state only): "
        "room for larger models, at a lower speed.",
        default=False,
        example=True,
    )


class Checkpoint(WritableLocation):
    """Where and how often the trainable state is saved."""

    model_config = ConfigDict(json_schema_extra=rules(*CHECKPOINT_RULES))

    interval_seconds: int | None = doc(
        "Time between checkpoints: what a death of the gang can cost at most. 0 = after every step.",
        unit="seconds",
        default=None,
        automatic="120 at first, then 30 or as much more as keeps saving below 1 % of the time",
        example=60,
        ge=0,
        le=86400,
    )
    keep: int = doc("Number of newest checkpoints to keep.", default=2, example=2, ge=1, le=100)


class Evaluation(ApiModel):
    """What is measured on the base model and on the result."""

    prompts: list[Prompt] = doc(
        "Prompts answered before and after training; the answers are published with the adapter.",
        default=[],
        automatic="[]",
        example=["How do tides work?"],
        max_length=8,
    )
    max_new_tokens: int = doc("Longest answer.", unit="tokens", default=64, example=64, ge=1, le=1024)


class FineTuneJobSpec(ApiModel):
    """What to train on what, how and where."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                f"has(self.method) && [{', '.join(f'has(self.method.{name})' for name in METHODS)}].exists_one(x, x)",
                f"method must have exactly one of: {', '.join(METHODS)}; e.g. method: {{lora: {{r: 16}}}}",
            ),
            Rule(
                "!has(self.method) || !(has(self.method.full) && has(self.method.qlora))",
                "method must not have both full and qlora: quantised weights cannot be updated, only adapters on top "
                "of them can; remove one of them",
            ),
        )
    )

    runtime_ref: RuntimeReference = doc(
        "The FineTuneRuntime to run on.",
        default=RuntimeReference(name="default"),
        automatic="{name: default}",
        example={"name": "default"},
    )
    run_id: str = doc(
        "Any text. Change it to start a fresh run of the same job; a run in progress is given up for it.",
        default="",
        example="2026-05-01",
        max_length=63,
        pattern=r"^[A-Za-z0-9._-]*$",
    )
    on_change: Literal["Ignore", "Restart"] = doc(
        "What an edit of an accepted run does. Ignore: the run stays as accepted, and condition SpecDrifted says what "
        "differs. Restart: the run is given up and the new spec is run; where model, data, method and training are the "
        "same it goes on from its checkpoint. runId, suspend, onChange and ttlSecondsAfterFinished take effect at once "
        "in any case.",
        default="Ignore",
        example="Restart",
    )
    suspend: bool = doc(
        "Stop the pods and keep the progress; false again resumes from the newest checkpoint.",
        default=False,
        example=True,
    )
    model: ModelLocation = doc("The base model.", example={"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"})
    dataset: Dataset = doc(
        "JSON lines, each with messages (role, content) or with prompt and completion. "
        "The loss is taken on the answers only.",
        example={"persistentVolumeClaim": {"claimName": "datasets", "path": "support.jsonl"}},
    )
    method: Method | None = doc(
        "The fine-tuning method, exactly one; a job without one is refused.",
        default=None,
        automatic="none, it must be set",
        example={"lora": {"r": 16}},
    )
    training: Training = doc(
        "Hyper-parameters.",
        default=Training(),
        automatic="the defaults of its fields",
        example={"maxSteps": 500},
    )
    distributed: Distributed = doc(
        "How the model is spread over the GPUs.",
        default=Distributed(),
        automatic="chosen by method",
        example={"strategy": "FSDP"},
    )
    placement: list[Placement] = doc(
        "The nodes and GPUs to run on, in the order in which they are tried; the global batch is the same on all.",
        default=[Placement()],
        automatic="one GPU in the cheapest pool of the runtime",
        example=[{"pool": "a100-spot", "nodes": 2, "maxInterruptions": 3}, {"pool": "a100", "nodes": 1}],
        min_length=1,
        max_length=8,
    )
    checkpoint: Checkpoint = doc(
        "Where and how often to save.",
        default=Checkpoint(),
        automatic="the runtime's storage, as often as saving is cheap",
        example={"intervalSeconds": 60},
    )
    evaluation: Evaluation = doc(
        "What to measure before and after.",
        default=Evaluation(),
        automatic="the loss on the held-out rows",
        example={"prompts": ["How do tides work?"]},
    )
    output: WritableLocation | None = doc(
        "Where the result is published, in a folder of its own.",
        default=None,
        automatic="the claim of checkpoint, or the runtime's storage",
        example={"persistentVolumeClaim": {"claimName": "adapters"}},
    )
    backoff_limit: int = doc(
        "How many failures of the job itself are retried; lost nodes and preemptions do not count while the run makes "
        "progress.",
        unit="failures",
        default=3,
        example=3,
        ge=0,
        le=100,
    )
    active_deadline_seconds: int | None = doc(
        "How long the run may hold or wait for nodes, summed over its attempts; waiting in a queue, suspension and the "
        "CPU stage do not count. Then it ends; its checkpoint stays.",
        unit="seconds",
        default=None,
        automatic="no limit",
        example=86400,
        ge=1,
        le=31536000,
    )
    ttl_seconds_after_finished: int | None = doc(
        "How long after its end the run's pods, Jobs and other children are kept. The FineTuneJob itself stays, and so "
        "does its result.",
        unit="seconds",
        default=None,
        automatic="as long as the FineTuneJob",
        example=3600,
        ge=0,
        le=31536000,
    )

    priority_class_name: PriorityClassName | None = doc(
        "PriorityClass of the pods of both stages; the runtime's allowedPriorityClassNames must have it.",
        default=None,
        automatic="the cluster's default",
        example="training-low",
    )
    pod_metadata: PodMetadata = doc(
        "Labels and annotations of the pods of both stages, e.g. for cost allocation.",
        default=PodMetadata(),
        automatic="none",
        example={"labels": {"cost-center": "cc-4711"}},
    )

    @property
    def method_name(self) -> MethodName:
        """Which method it is.

        Raises:
            ValueError: none or several; acceptance has ruled that out.
        """
        chosen = self.method.chosen if self.method is not None else []
        if len(chosen) != 1:
            raise ValueError(f"spec.method must have exactly one of: {', '.join(METHODS)}")
        return chosen[0]


class FineTuneJob(ApiModel):
    """A model, a dataset and a method: one adapter, trained on whatever GPUs there are, through any interruption."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                f"self.metadata.name.size() <= {NAME_LIMIT}",
                f"metadata.name must have at most {NAME_LIMIT} characters, because it becomes part of hostnames: "
                "choose a shorter name",
            ),
        )
    )

    spec: FineTuneJobSpec = Field(description="What to train on what, how and where.")
    status: FineTuneJobStatus = Field(
        default=FineTuneJobStatus(), description="What the operator observed and decided."
    )
