"""TrainConfig and PrepareConfig: THE CONTRACT between the operator and the trainer image.

The operator writes one of these as JSON into a ConfigMap; the pods read it from ``/etc/finetune/config.json``. Both
sides use these models, so importing this module needs no torch. JSON keys are camelCase, as in the FineTuneJob.
Every location is a URI: a mounted volume appears as ``file:///mnt/finetune/<role>/…``.

A change that an older trainer would misread raises ``CONTRACT_VERSION``; the operator writes the current and the
previous version, whichever the run's snapshot names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

CONTRACT_VERSION = 1
CONFIG_PATH = Path("/etc/finetune/config.json")
TERMINATION_LOG_PATH = Path("/dev/termination-log")
MOUNT_ROOT = "/mnt/finetune"
RENDEZVOUS_PORT = 29400
HEARTBEAT_PORT = RENDEZVOUS_PORT + 1
"""Where launcher 0 hears the others; always one above the rendezvous."""

Device = Literal["cpu", "cuda"]
StrategyName = Literal["DDP", "FSDP", "ZeRO2", "ZeRO3"]
MethodName = Literal["lora", "qlora", "full"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ContractModel(BaseModel):
    """Frozen, camelCase on the wire, unknown keys refused (a typo must not pass silently)."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    def to_json(self) -> str:
        """The canonical text: sorted by declaration, camelCase, None left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2)


class JobIdentity(ContractModel):
    """Which FineTuneJob this belongs to."""

    namespace: str
    name: str
    uid: str = ""


class RunIdentity(ContractModel):
    """One execution of a job's spec. The digest names it in the store."""

    id: str = ""
    digest: Digest


class Topology(ContractModel):
    """The gang: ``nodes`` pods with ``processes_per_node`` ranks each. World size is their product."""

    nodes: int = Field(ge=1)
    processes_per_node: int = Field(ge=1)
    device: Device
    master_address: str = "127.0.0.1"
    master_port: int = Field(default=RENDEZVOUS_PORT, ge=1, lt=65535)

    @property
    def heartbeat_port(self) -> int:
        """Where launcher 0 hears the others: ``HEARTBEAT_PORT``, unless the rendezvous was moved."""
        return self.master_port + 1

    @property
    def world_size(self) -> int:
        """Number of ranks of the gang."""
        return self.nodes * self.processes_per_node


class Distributed(ContractModel):
    """How the model is spread over the ranks of the gang; one rank alone needs none of it."""

    strategy: StrategyName = "DDP"
    shard_across_nodes: bool = False
    """FSDP on several nodes: one shard per rank of the gang. False: sharded within a node, replicated across."""
    cpu_offload: bool = False
    """Shards and optimizer state in host memory (FSDP, ZeRO3); optimizer state only (ZeRO2)."""


class LoraMethod(ContractModel):
    """LoRA, in peft's names (``peft.LoraConfig``)."""

    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = Field(min_length=1)


class QloraMethod(LoraMethod):
    """LoRA on a base model in 4 bits (``transformers.BitsAndBytesConfig``)."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    """Quantise the quantisation constants too: 4.127 instead of 4.5 bits per parameter."""
    quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] | None = None
    """dtype in which the packed weights lie. None: the precision under FSDP, which shards no others; else uint8."""


class FullMethod(ContractModel):
    """Every parameter is trained, in fp32; ``training.precision`` is that of the forward and backward pass."""


class Method(ContractModel):
    """Exactly one fine-tuning method."""

    lora: LoraMethod | None = None
    qlora: QloraMethod | None = None
    full: FullMethod | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Method:
        chosen = [name for name in get_args(MethodName) if getattr(self, name) is not None]
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none"
            raise ValueError(f"method must have exactly one of: {', '.join(get_args(MethodName))}; has {found}")
        return self

    @property
    def name(self) -> MethodName:
        """Which one it is."""
        return next(name for name in get_args(MethodName) if getattr(self, name) is not None)

    @property
    def adapter(self) -> LoraMethod | None:
        """Settings of the low-rank matrices; None when every parameter is trained."""
        return self.lora or self.qlora


class ModelSource(ContractModel):
    """The base model as prepare left it: a folder of safetensors, config and tokenizer."""

    uri: str
    """Where the trainer reads it (``file://``)."""
    source_uri: str
    """What the user named; recorded in the adapter's lineage."""
    revision: str = ""
    """Commit of a Hub model; empty for a volume."""
    digest: Digest
    """sha256 over the names, sizes and headers that prepare saw; the trainer compares before it loads."""


class DataSource(ContractModel):
    """The dataset as prepare split it, JSON lines."""

    train_uri: str
    eval_uri: str | None = None
    train_rows: int = Field(ge=1)
    eval_rows: int = Field(ge=0)
    digest: Digest
    max_length: int = Field(ge=8)
    longest_row_tokens: int | None = Field(default=None, ge=1)
    """Of the training rows, before they are cut; None: unknown, ``max_length`` is assumed."""
    packs_uri: str | None = None
    """Which rows share a sequence: JSON, a list of lists of row numbers from 0. None: one row per sequence."""
    train_packs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _counts_its_packs(self) -> DataSource:
        if (self.packs_uri is None) != (self.train_packs is None):
            raise ValueError("data must have both or none of: packsUri, trainPacks")
        return self

    @property
    def train_items(self) -> int:
        """What a batch counts: packs where rows are packed, else rows."""
        return self.train_packs if self.train_packs is not None else self.train_rows


class Training(ContractModel):
    """Hyper-parameters in ``transformers.TrainingArguments``' names, with the batch arithmetic resolved."""

    num_train_epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    global_batch_size: int = Field(ge=1)
    """Rows per optimizer step over all ranks; never changes within a run."""
    per_device_train_batch_size: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    """ceil(global / (per device x world)); the last micro-step is padded with rows of weight zero."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """0 = no clipping."""
    optim: str = "adamw_torch"
    """In ``transformers.TrainingArguments``' names; see :mod:`finetune_trainer.compatibility` for what works."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """dtype of the frozen base model, or of 4-bit weights once they are unpacked; what is trained stays fp32."""
    gradient_checkpointing: bool = False
    seed: int = Field(default=42, ge=0)
    deterministic: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.num_train_epochs is None) == (self.max_steps is None):
            raise ValueError("training must have exactly one of: numTrainEpochs, maxSteps")
        return self


class Checkpointing(ContractModel):
    """Where and how often."""

    uri: str
    """Folder of all fences of this run and data, ``file://`` or ``s3://``:
    ``…/<namespace>/<name>/<run digest>/<data digest>``."""
    interval_seconds: float | None = Field(default=None, ge=0)
    """None: 120 s at first, then 30 s or what keeps saving below 1 % of the time. 0: after every step."""
    keep: int = Field(default=2, ge=1)


class Output(ContractModel):
    """Where the adapter is published: the folder itself, not its parent."""

    uri: str


class Evaluation(ContractModel):
    """What is measured before step 1 and after the last step."""

    prompts: list[str] = Field(default_factory=list, max_length=8)
    max_new_tokens: int = Field(default=64, ge=1)


class PhaseLimits(ContractModel):
    """Seconds a phase may take before the watchdog dumps all stacks and ends the pod with exit code 78."""

    rendezvous: float = 300.0
    load: float = 1800.0
    first_step: float = 1200.0
    step: float = 600.0
    evaluate: float = 3600.0
    save: float = 600.0
    publish: float = 600.0


class TrainConfig(ContractModel):
    """Everything one attempt needs, version 1. Rank and node come from the environment."""

    contract_version: Literal[1] = 1
    job: JobIdentity
    run: RunIdentity
    attempt: int = Field(ge=1)
    topology: Topology
    model: ModelSource
    data: DataSource
    method: Method
    training: Training
    distributed: Distributed = Distributed()
    checkpoint: Checkpointing
    output: Output
    evaluation: Evaluation = Evaluation()
    phase_limits: PhaseLimits = PhaseLimits()
    allowed_uri_prefixes: list[str] | None = None
    """What every URI here must begin with (:mod:`finetune_trainer.uri_prefixes`). None: any URI."""

    def uris(self) -> dict[str, str]:
        """Field of the FineTuneJob -> URI, of all that is read or written."""
        named = {
            "spec.model.uri": self.model.source_uri,
            "spec.model": self.model.uri,
            "spec.dataset": self.data.train_uri,
            "spec.dataset.eval": self.data.eval_uri,
            "spec.dataset.packing": self.data.packs_uri,
            "spec.checkpoint.uri": self.checkpoint.uri,
            "spec.output.uri": self.output.uri,
        }
        return {field: uri for field, uri in named.items() if uri is not None}


class PrepareConfig(ContractModel):
    """Everything the CPU stage needs, version 1."""

    contract_version: Literal[1] = 1
    job: JobIdentity
    run: RunIdentity
    model_uri: str
    """``hf://org/name[@revision]`` or ``file:///mnt/finetune/model/…``."""
    dataset_uri: str
    """A JSONL file: ``file:///mnt/finetune/dataset/….jsonl`` or ``hf://datasets/org/name[@revision]/path.jsonl``."""
    eval_uri: str | None = None
    """A JSONL file of held-out rows; exclusive with ``eval_fraction``."""
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 42
    max_length: int = Field(default=2048, ge=8)
    max_steps: int | None = None
    packing: bool = False
    """Lay several rows into one sequence of at most ``max_length`` tokens."""
    cache_uri: str
    """``file://`` folder for staged models and data, shared by all nodes."""
    output_uri: str
    """Folder under which results of this job are published: ``<output_uri>/<run>-<data>-<model>``."""
    allowed_uri_prefixes: list[str] | None = None
    """What every URI here must begin with (:mod:`finetune_trainer.uri_prefixes`). None: any URI."""

    def uris(self) -> dict[str, str]:
        """Field of the FineTuneJob -> URI, of all that is read or written."""
        named = {
            "spec.model.uri": self.model_uri,
            "spec.dataset.uri": self.dataset_uri,
            "spec.dataset.eval.uri": self.eval_uri,
            "spec.checkpoint": self.cache_uri,
            "spec.output.uri": self.output_uri,
        }
        return {field: uri for field, uri in named.items() if uri is not None}
