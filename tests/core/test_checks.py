"""Checks before acceptance: each violation has a reason of its own and names field, value and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api.runtime import LabelSelector
from finetune_operator.core.checks import claims, first_violation, selects
from makers import JobMaker, a_job, a_pool, a_runtime, observed

pytestmark = pytest.mark.unit

NO_STORAGE = a_runtime(storage=None)
ONLY_PRODUCTION = a_runtime(allowedNamespaces={"matchLabels": {"team": "production"}})
TWO_POOLS = a_runtime(a_pool("small", nodes=1, gpusPerNode=1), a_pool("large", nodes=4, gpusPerNode=8))
PREFIXES = a_runtime(allowedUriPrefixes=["hf://org/", "hf://datasets/org/", "s3://finetune/{namespace}"])
RESOLVED = "hf://org/, hf://datasets/org/, s3://finetune/research"

VIOLATIONS = [
    pytest.param(
        a_job().unreadable("spec.method.lora.r: must be at most 1024, is '4096'"),
        {},
        ("InvalidSpec", True),
        ["spec.method.lora.r", "4096", "edit the field"],
        id="spec-does-not-parse",
    ),
    pytest.param(
        a_job().with_spec(runtimeRef={"name": "gpu"}),
        {"runtime": None},
        ("RuntimeNotFound", False),
        ["spec.runtimeRef.name", "'gpu'", "create it or name another"],
        id="runtime-does-not-exist",
    ),
    pytest.param(
        a_job(),
        {"runtime": None, "runtime_error": "spec.pools.0.name: Field required, is '{}'"},
        ("InvalidSpec", True),
        [
            "spec.runtimeRef.name",
            "FineTuneRuntime 'default'",
            "its spec.pools.0.name",
            "its owner",
            "as soon as it has changed",
        ],
        id="runtime-does-not-parse",
    ),
    pytest.param(
        a_job(),
        {"runtime": ONLY_PRODUCTION},
        ("NamespaceNotAllowed", True),
        ["spec.runtimeRef.name", "'default'", "'research'", "allowedNamespaces"],
        id="namespace-is-not-allowed",
    ),
    pytest.param(
        a_job().with_model("hf://evil/name@main"),
        {"runtime": PREFIXES},
        ("UriNotAllowed", True),
        ["spec.model.uri", "'hf://evil/name@main'", "'default'", f"must begin with one of: {RESOLVED};", "ask the"],
        id="model-of-another-organisation",
    ),
    pytest.param(
        a_job().with_spec(dataset={"persistentVolumeClaim": None, "uri": "hf://datasets/evil/name/a.jsonl"}),
        {"runtime": PREFIXES},
        ("UriNotAllowed", True),
        ["spec.dataset.uri", "'hf://datasets/evil/name/a.jsonl'", RESOLVED],
        id="dataset-of-another-organisation",
    ),
    pytest.param(
        a_job().with_dataset(eval={"uri": "hf://datasets/evil/name/a.jsonl"}),
        {"runtime": PREFIXES},
        ("UriNotAllowed", True),
        ["spec.dataset.eval.uri", "'hf://datasets/evil/name/a.jsonl'", RESOLVED],
        id="held-out-rows-of-another-organisation",
    ),
    pytest.param(
        a_job().with_bucket("checkpoint", "s3://finetune/research2"),
        {"runtime": PREFIXES},
        ("UriNotAllowed", True),
        ["spec.checkpoint.uri", "'s3://finetune/research2'", RESOLVED],
        id="checkpoints-in-another-namespaces-prefix",
    ),
    pytest.param(
        a_job().with_bucket("output", "s3://finetune"),
        {"runtime": PREFIXES},
        ("UriNotAllowed", True),
        ["spec.output.uri", "'s3://finetune'", RESOLVED],
        id="results-above-the-prefix",
    ),
    pytest.param(
        a_job().with_model("hf://org/name@%2e%2e"),
        {"runtime": PREFIXES},
        ("UriNotAllowed", True),
        ["spec.model.uri", "must not contain '..', spaces, or any of %"],
        id="percent-encoding",
    ),
    pytest.param(
        a_job().with_model("hf://org/name"),
        {"runtime": a_runtime(allowedUriPrefixes=[])},
        ("UriNotAllowed", True),
        ["spec.model.uri", "no prefix is allowed", "a persistentVolumeClaim"],
        id="volumes-only",
    ),
    pytest.param(
        a_job().with_spec(priorityClassName="urgent"),
        {"runtime": a_runtime(allowedPriorityClassNames=["low", "high"])},
        ("PriorityClassNotAllowed", True),
        ["spec.priorityClassName", "'urgent'", "'default'", "name one of: low, high", "allowedPriorityClassNames"],
        id="priority-class-is-not-allowed",
    ),
    pytest.param(
        a_job().with_spec(priorityClassName="system-node-critical"),
        {},
        ("PriorityClassNotAllowed", True),
        ["spec.priorityClassName", "'system-node-critical'", "it allows none: remove the field"],
        id="no-priority-class-is-allowed",
    ),
    pytest.param(
        a_job().with_spec(podMetadata={"labels": {"team": "a", "sidecar.istio.io/inject": "true"}}),
        {"runtime": a_runtime(allowedPodMetadataPrefixes=["cost.example.org/"])},
        ("PodMetadataNotAllowed", True),
        [
            "spec.podMetadata.labels",
            "'sidecar.istio.io/inject'",
            "a key without a prefix",
            "cost.example.org/,",
            "add sidecar.istio.io/ to allowedPodMetadataPrefixes",
        ],
        id="label-that-a-mesh-acts-on",
    ),
    pytest.param(
        a_job().with_spec(podMetadata={"labels": {"evil.cost.example.org/a": "b"}}),
        {"runtime": a_runtime(allowedPodMetadataPrefixes=["cost.example.org/"])},
        ("PodMetadataNotAllowed", True),
        ["spec.podMetadata.labels", "'evil.cost.example.org/a'"],
        id="label-below-a-prefix",
    ),
    pytest.param(
        a_job().with_spec(podMetadata={"annotations": {"note": "x"}}),
        {},
        ("PodMetadataNotAllowed", True),
        ["spec.podMetadata.annotations", "'note'", "one of these prefixes: (none)"],
        id="annotation-without-a-prefix",
    ),
    pytest.param(
        a_job().on(pool="h100"),
        {"runtime": TWO_POOLS},
        ("PoolNotFound", True),
        ["spec.placement[0].pool", "'h100'", "name one of: small, large"],
        id="pool-does-not-exist",
    ),
    pytest.param(
        a_job().on(pool="small", nodes=2),
        {"runtime": TWO_POOLS},
        ("PlacementTooLarge", True),
        ["spec.placement[0]", "nodes 2 x gpusPerNode 1", "pool 'small' has 1 x 1", "ask for fewer"],
        id="too-large-for-the-named-pool",
    ),
    pytest.param(
        a_job().on(nodes=8, gpusPerNode=8),
        {"runtime": TWO_POOLS},
        ("PlacementTooLarge", True),
        ["nodes 8 x gpusPerNode 8", "pool 'small' has 1 x 1", "pool 'large' has 4 x 8"],
        id="too-large-for-every-pool",
    ),
    pytest.param(
        a_job(),
        {"runtime": NO_STORAGE},
        ("StorageNotSet", True),
        ["spec.checkpoint.persistentVolumeClaim", "'default'", "name a claim"],
        id="storage-is-not-set",
    ),
    pytest.param(
        a_job().with_bucket("checkpoint", "s3://finetune/checkpoints"),
        {"runtime": NO_STORAGE},
        ("StorageNotSet", True),
        ["spec.checkpoint.uri", "s3://finetune/checkpoints", "FineTuneRuntime 'default' has no storage", "staged"],
        id="bucket-for-checkpoints-but-nothing-for-the-cache",
    ),
    pytest.param(
        a_job().with_spec(method=None),
        {},
        ("InvalidSpec", True),
        ["spec.method", "exactly one of: full, lora, qlora", "has none", "lora: {r: 16}"],
        id="no-method",
    ),
    pytest.param(
        a_job().with_spec(method={"qlora": {}, "full": {}}),
        {},
        ("InvalidSpec", True),
        ["spec.method", "has full and lora and qlora"],
        id="several-methods",
    ),
    pytest.param(
        a_job().distributed(strategy="DDP", cpuOffload=True),
        {},
        ("SettingsConflict", True),
        ["spec.distributed.cpuOffload", "spec.distributed.strategy DDP", "set spec.distributed.strategy to FSDP"],
        id="offload-with-ddp",
    ),
    pytest.param(
        a_job().distributed(strategy="FSDP").with_training(optim="paged_adamw_8bit"),
        {},
        ("SettingsConflict", True),
        ["spec.training.optim paged_adamw_8bit", "spec.distributed.strategy FSDP", "omit spec.training.optim"],
        id="low-bit-optimizer-with-shards",
    ),
    pytest.param(
        a_job().with_training(optim="sgd"),
        {},
        ("SettingsConflict", True),
        ["spec.training.optim", "one of: adamw_torch, adamw_torch_fused"],
        id="unknown-optimizer",
    ),
    pytest.param(
        a_job().with_qlora(quantStorage="uint8").distributed(strategy="FSDP"),
        {"runtime": a_runtime(a_pool(device="cuda"))},
        ("SettingsConflict", True),
        ["spec.method.qlora.quantStorage uint8", "spec.training.precision bf16", "or set it to bfloat16"],
        id="quantised-storage-that-fsdp-cannot-shard",
    ),
    pytest.param(
        a_job().with_qlora(quantStorage="bfloat16").distributed(strategy="FSDP"),
        {},
        ("SettingsConflict", True),
        ["spec.training.precision fp32", "or set it to float32"],
        id="precision-of-the-pool-decides",
    ),
    pytest.param(
        a_job().with_full().on(nodes=2),
        {},
        ("SettingsConflict", True),
        ["spec.method.full", "nodes 2", "set spec.placement[0].nodes to 1"],
        id="full-on-two-nodes",
    ),
    pytest.param(
        a_job(),
        {"missing_claims": frozenset({"models"})},
        ("PersistentVolumeClaimNotFound", False),
        ["spec.model.persistentVolumeClaim.claimName", "'models'", "'research'", "create it"],
        id="claim-of-the-job-does-not-exist",
    ),
    pytest.param(
        a_job(),
        {"missing_claims": frozenset({"finetune-storage"})},
        ("PersistentVolumeClaimNotFound", False),
        ["storage of FineTuneRuntime 'default'", "'finetune-storage'"],
        id="claim-of-the-runtime-does-not-exist",
    ),
]


@pytest.mark.parametrize(("job", "surroundings", "verdict", "words"), VIOLATIONS)
def test_violation_names_field_value_and_remedy(
    job: JobMaker, surroundings: dict[str, Any], verdict: tuple[str, bool], words: list[str]
) -> None:
    """What only an edit mends is stalled at once; what may still appear is waited for."""
    violation = first_violation(observed(job, **surroundings))
    assert violation is not None
    assert (violation.reason, violation.stalled) == verdict
    for word in words:
        assert word in violation.message


def test_a_good_job_has_no_violation() -> None:
    """Nothing in the way."""
    assert first_violation(observed(a_job())) is None


@pytest.mark.parametrize(
    "job",
    [
        a_job().with_full().on(gpusPerNode=2),
        a_job().with_qlora().distributed(cpuOffload=True).on(nodes=2, gpusPerNode=2),
        a_job().with_qlora(quantStorage="float32").distributed(strategy="FSDP"),
        a_job().distributed(strategy="ZeRO3", cpuOffload=True).with_training(optim="adamw_torch_fused"),
        a_job().with_bucket("checkpoint", "s3://finetune", "store").with_bucket("output", "s3://finetune"),
    ],
    ids=["full", "qlora-offload", "fitting-storage", "zero", "buckets"],
)
def test_what_works_together_has_no_violation(job: JobMaker) -> None:
    """As many ways as there are."""
    assert first_violation(observed(job)) is None


def test_what_the_runtime_allows_has_no_violation() -> None:
    """Every kind of URI, priority and metadata at once."""
    runtime = a_runtime(
        allowedUriPrefixes=["hf://org/", "hf://datasets/org/", "s3://finetune/{namespace}"],
        allowedPriorityClassNames=["low"],
        allowedPodMetadataPrefixes=["cost.example.org/"],
    )
    job = (
        a_job()
        .with_model("hf://org/name@v1")
        .with_spec(dataset={"persistentVolumeClaim": None, "uri": "hf://datasets/org/name/a.jsonl"})
        .with_bucket("checkpoint", "s3://finetune/research/c")
        .with_bucket("output", "s3://finetune/research/o")
        .with_spec(priorityClassName="low")
        .with_spec(podMetadata={"labels": {"team": "a", "cost.example.org/a": "b"}})
        .with_spec(podMetadata={"annotations": {"cost.example.org/c": "d e"}})
    )
    assert first_violation(observed(job, runtime=runtime)) is None


def test_nothing_is_told_about_a_runtime_that_is_not_allowed() -> None:
    """The namespace is checked first, or pool names would leak."""
    job = a_job().on(pool="h100")
    violation = first_violation(observed(job, runtime=ONLY_PRODUCTION))
    assert violation is not None
    assert violation.reason == "NamespaceNotAllowed"


def test_claims_of_a_job_with_storage_leave_the_runtimes_out() -> None:
    """Only what would be mounted must exist."""
    job = (
        a_job()
        .with_storage("mine")
        .with_output("adapters")
        .with_dataset(eval={"persistentVolumeClaim": {"claimName": "held-out"}})
    )
    assert sorted(claims(job.spec(), a_runtime()).values()) == ["adapters", "datasets", "held-out", "mine", "models"]


def test_bucket_for_checkpoints_still_needs_the_runtimes_claim() -> None:
    """Models and data are staged on it."""
    job = a_job().with_bucket("checkpoint", "s3://finetune").with_bucket("output", "s3://adapters")
    assert sorted(claims(job.spec(), a_runtime()).values()) == ["datasets", "finetune-storage", "models"]


def test_hub_locations_need_no_claim() -> None:
    """Only volumes are looked for."""
    job = a_job().with_model("hf://org/name")
    assert "models" not in claims(job.spec(), a_runtime()).values()


@pytest.mark.parametrize(
    ("expression", "is_selected"),
    [
        ({}, True),
        ({"matchLabels": {"team": "research"}}, True),
        ({"matchLabels": {"team": "production"}}, False),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["research", "x"]}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["research"]}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}, True),
        (
            {
                "matchLabels": {"team": "research"},
                "matchExpressions": [{"key": "team", "operator": "DoesNotExist"}],
            },
            False,
        ),
    ],
    ids=[
        "empty-selects-all", "label", "other-label", "in", "not-in", "not-in-absent", "exists", "exists-absent",
        "does-not-exist", "all-must-hold",
    ],
)  # fmt: skip
def test_selector_selects_as_kubernetes_does(expression: dict[str, Any], is_selected: bool) -> None:
    """Labels and expressions, all of which must hold."""
    assert selects(LabelSelector.model_validate(expression), {"team": "research"}) is is_selected
