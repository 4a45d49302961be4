"""FineTuneRuntime: what the platform team owns: images, pools of nodes, storage, who may use it. Cluster-scoped."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from finetune_operator.api.base import ApiModel, Rule, doc, rules
from finetune_operator.api.locations import StorageLocation, UriPrefix
from finetune_operator.api.pod_metadata import RESERVED_PREFIX, MetadataPrefix, PriorityClassName

LabelValue = Annotated[str, Field(max_length=63)]
LabelKey = Annotated[str, Field(max_length=317)]
SecretName = Annotated[str, Field(max_length=253)]
_SMALL_MAP: dict[str, Any] = {"maxProperties": 32}

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    key: str | None = doc("Taint key.", default=None, automatic="all keys", example="nvidia.com/gpu", max_length=317)
    operator: Literal["Exists", "Equal"] | None = doc(
        "How to compare.", default=None, automatic="Equal", example="Exists"
    )
    value: str | None = doc("Taint value.", default=None, example="present", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = doc(
        "Taint effect.", default=None, automatic="all effects", example="NoSchedule"
    )
    toleration_seconds: int | None = doc(
        "How long a NoExecute taint is tolerated.",
        unit="seconds",
        default=None,
        automatic="for ever",
        example=60,
        ge=0,
        le=604800,
    )


class Pool(ApiModel):
    """Nodes that are alike."""

    # Quantities may be written as bare numbers, as everywhere in Kubernetes.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = doc(
        "Name that jobs use.",
        example="a100-spot",
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    )
    device: Literal["cuda", "cpu"] = doc(
        "What the trainer computes on. On a cuda pool a missing GPU is an infrastructure failure, never a CPU run.",
        default="cuda",
        example="cuda",
    )
    resource_name: str | None = doc(
        "Extended resource that a pod requests, one per process.",
        default=None,
        automatic="nvidia.com/gpu on a cuda pool, none on a cpu pool",
        example="nvidia.com/gpu",
        max_length=253,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
    )
    nodes: int = doc("Most nodes a job may ask for.", default=1, example=4, ge=1, le=1024)
    gpus_per_node: int = doc("Most GPUs (processes) per node.", default=1, example=8, ge=1, le=16)
    node_selector: dict[LabelKey, LabelValue] = doc(
        "Labels of the pool's nodes.",
        default={},
        automatic="any node",
        example={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        extra=_SMALL_MAP,
    )
    tolerations: list[Toleration] = doc(
        "Taints of the pool's nodes that its pods tolerate.",
        default=[],
        automatic="none",
        example=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        max_length=16,
    )
    cpu_per_gpu: str = doc(
        "CPU request per process.",
        unit="cores, as a quantity",
        default="4",
        example="8",
        max_length=16,
        pattern=_QUANTITY,
        extra={"x-kubernetes-int-or-string": True},
    )
    memory_per_gpu: str = doc(
        "Memory request and limit per process.",
        unit="bytes, as a quantity",
        default="32Gi",
        example="64Gi",
        max_length=16,
        pattern=_QUANTITY,
        extra={"x-kubernetes-int-or-string": True},
    )
    shm_size: str = doc(
        "Size of /dev/shm, which counts as memory.",
        unit="bytes, as a quantity",
        default="1Gi",
        example="8Gi",
        max_length=16,
        pattern=_QUANTITY,
        extra={"x-kubernetes-int-or-string": True},
    )
    spot: bool = doc("The nodes can be reclaimed at any time.", default=False, example=True)
    price_per_gpu_hour: float | None = doc(
        "What one GPU (one process) costs per hour: jobs that name no pool get the cheapest that is "
        "large enough, and status.totals.cost counts it.",
        unit="any currency per GPU-hour",
        default=None,
        automatic="not known",
        example=2.5,
        ge=0,
        le=1_000_000,
    )
    fabric: Literal["tcp", "rdma"] = doc(
        "Network between the nodes. tcp: with FSDP every node holds the whole model, sharded over its GPUs; rdma "
        "(InfiniBand, RoCE, EFA): it is sharded over the GPUs of all nodes.",
        default="tcp",
        example="rdma",
    )


class EnvVar(ApiModel):
    """An environment variable of all pods."""

    name: str = doc("Name.", example="HF_ENDPOINT", max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str = doc("Value.", default="", example="https://hub.example.org", max_length=1024)


class LabelSelectorRequirement(ApiModel):
    """One expression of a label selector."""

    key: str = doc("Label key.", example="team", max_length=317)
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = doc("How to compare.", example="In")
    values: list[LabelValue] = doc("Label values.", default=[], automatic="[]", example=["research"], max_length=32)


class LabelSelector(ApiModel):
    """Selects by labels; empty selects everything. Namespaces carry kubernetes.io/metadata.name."""

    match_labels: dict[LabelKey, LabelValue] = doc(
        "Labels that must be equal.",
        default={},
        automatic="{}",
        example={"team": "research"},
        extra=_SMALL_MAP,
    )
    match_expressions: list[LabelSelectorRequirement] = doc(
        "Expressions that must hold.",
        default=[],
        automatic="[]",
        example=[{"key": "team", "operator": "Exists"}],
        max_length=16,
    )


class FineTuneRuntimeSpec(ApiModel):
    """Images, pools, storage, and who may use them."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    image: str = doc(
        "Trainer image, best by digest: a tag can change under a running job.",
        example="registry.example.org/finetune-trainer@sha256:…",
        min_length=1,
        max_length=512,
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = doc(
        "When to pull the image.", default="IfNotPresent", example="IfNotPresent"
    )
    image_pull_secrets: list[SecretName] = doc(
        "Names of pull secrets in the job's namespace.",
        default=[],
        automatic="none",
        example=["registry"],
        max_length=8,
    )
    pools: list[Pool] = Field(
        min_length=1,
        max_length=32,
        description="Nodes to run on; a job without a pool gets the cheapest that is large enough, or the first of "
        "those without a price. Required. "
        "Example: [{name: default, nodes: 2, gpusPerNode: 8}].",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    storage: StorageLocation | None = doc(
        "Where checkpoints, staged data and results go when the job does not say: a claim of this name in the job's "
        "own namespace.",
        default=None,
        automatic="each job must set checkpoint.persistentVolumeClaim",
        example={"persistentVolumeClaim": {"claimName": "finetune-storage"}},
    )
    allowed_namespaces: LabelSelector | None = doc(
        "Namespaces whose jobs may use this runtime.",
        default=None,
        automatic="all namespaces",
        example={"matchLabels": {"kubernetes.io/metadata.name": "research"}},
    )
    allowed_uri_prefixes: list[UriPrefix] | None = doc(
        "What every URI of a job (model, dataset, dataset.eval, checkpoint, output) must begin with, by whole "
        "segments: s3://data/team allows s3://data/team/x and not s3://data/team2. {namespace} stands for the job's "
        "namespace. Models and datasets of an organisation are two prefixes. An empty list leaves volumes only.",
        default=None,
        automatic="any URI",
        example=["hf://my-org/", "hf://datasets/my-org/", "s3://finetune/{namespace}/"],
        max_length=32,
    )
    allowed_priority_class_names: list[PriorityClassName] = doc(
        "PriorityClasses that spec.priorityClassName of a job may name; none of Kubernetes' own (system-).",
        default=[],
        automatic="none",
        example=["training-low", "training-high"],
        max_length=32,
        extra=rules(
            Rule(
                "self.all(name, !name.startsWith('system-'))",
                "must not hold names that begin with system-: pods of jobs would evict those of the cluster itself",
            )
        ),
    )
    allowed_pod_metadata_prefixes: list[MetadataPrefix] = doc(
        "Prefixes of the keys that spec.podMetadata of a job may set, besides labels without a prefix. Controllers act "
        "on labels and annotations of pods (service meshes, queues, cloud identities): name only what nothing but "
        "reporting reads.",
        default=[],
        automatic="none",
        example=["cost.example.org/"],
        max_length=32,
        extra=rules(
            Rule(
                f"self.all(prefix, !prefix.matches('{RESERVED_PREFIX}'))",
                "must not hold prefixes of Kubernetes (kubernetes.io, k8s.io, x-k8s.io and below) or of "
                "finetune-operator.io",
            )
        ),
    )
    service_account_name: str = doc(
        "Service account of the pods; its token is never mounted.",
        default="default",
        example="finetune",
        max_length=253,
    )
    env: list[EnvVar] = doc(
        "Environment of all pods, e.g. HF_ENDPOINT. Not for credentials: it can be read by anyone who reads pods.",
        default=[],
        automatic="none",
        example=[{"name": "HF_ENDPOINT", "value": "https://hub.example.org"}],
        max_length=32,
        extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    prepare_memory: str = doc(
        "Memory request and limit of the CPU stage.",
        unit="bytes, as a quantity",
        default="2Gi",
        example="4Gi",
        max_length=16,
        pattern=_QUANTITY,
        extra={"x-kubernetes-int-or-string": True},
    )


class FineTuneRuntime(ApiModel):
    """What the platform team offers: a trainer image, pools of nodes, storage, and who may use them."""

    spec: FineTuneRuntimeSpec = Field(description="Images, pools, storage, and who may use them.")
