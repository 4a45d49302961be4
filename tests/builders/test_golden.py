"""What is created, byte by byte: one YAML file per case, rewritten with ``UPDATE_GOLDEN=1``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.runtime import FineTuneRuntimeSpec
from finetune_operator.api.status import FactsStatus
from finetune_operator.builders.attempt import build_attempt
from finetune_operator.builders.prepare import build_prepare
from finetune_operator.builders.snapshot import build_snapshot
from finetune_operator.core.planner.plan import plan_attempt
from finetune_trainer.config import PrepareConfig, TrainConfig
from makers import JobMaker, a_job, a_pool, a_runtime, a_snapshot, facts, packed_facts
from pod_security import restricted_violations

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"
Manifests = list[dict[str, Any]]

GPU_RUNTIME = a_runtime(
    a_pool(
        "a100-spot",
        device="cuda",
        nodes=4,
        gpusPerNode=8,
        nodeSelector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        cpuPerGpu="500m",
        memoryPerGpu="1.5Gi",
        shmSize="8Gi",
        spot=True,
    ),
    imagePullSecrets=["registry"],
    serviceAccountName="finetune",
    env=[{"name": "HF_ENDPOINT", "value": "https://hub.example.org"}],
)
GPU_JOB = (
    a_job()
    .on(nodes=2, gpusPerNode=8)
    .labelled(**{"kueue.x_k8s.io__queue_name": "team-a", "team": "not-copied"})
    .with_lora(r=8, loraDropout=0.05, targetModules=["q_proj", "v_proj"])
    .with_training(maxSteps=500, globalBatchSize=64, learningRate=1.0e-4)
    .with_dataset(eval={"persistentVolumeClaim": {"claimName": "held-out", "path": "eval.jsonl"}})
    .with_storage("checkpoints", "team/a")
    .with_output("adapters")
    .with_run("2026-05-01")
)
HUB_JOB = a_job().with_model("hf://HuggingFaceTB/SmolLM2-135M-Instruct@main").with_dataset(evalFraction=0.1)


def _snapshot(job: JobMaker, runtime: FineTuneRuntimeSpec) -> Manifests:
    manifest = build_snapshot(job.build(), a_snapshot(job, runtime))
    manifest["data"]["snapshot.json"] = json.dumps(json.loads(manifest["data"]["snapshot.json"]), indent=2)
    return [manifest]


def _prepare(job: JobMaker, runtime: FineTuneRuntimeSpec) -> Manifests:
    return build_prepare(job.build(), a_snapshot(job, runtime))


S3_JOB = (
    a_job()
    .on(nodes=2, gpusPerNode=8)
    .with_qlora(r=64, quantType="nf4")
    .distributed(strategy="FSDP")
    .with_dataset(packing=True, maxLength=4096)
    .with_bucket("checkpoint", "s3://finetune/checkpoints", "checkpoint-store")
    .with_bucket("output", "s3://adapters", "adapter-store")
)
FULL_JOB = (
    a_job()
    .on(gpusPerNode=8)
    .with_full()
    .distributed(cpuOffload=True)
    .with_training(learningRate=1.0e-5, optim="adamw_torch_fused", gradientCheckpointing=True)
)
TENANT_RUNTIME = a_runtime(
    allowedUriPrefixes=["hf://", "s3://finetune/{namespace}/"],
    allowedPriorityClassNames=["training-low"],
    allowedPodMetadataPrefixes=["cost.example.org/"],
)
TENANT_JOB = (
    a_job()
    .with_model("hf://org/name@main")
    .with_bucket("output", "s3://finetune/research/adapters", "store")
    .with_spec(
        priorityClassName="training-low",
        podMetadata={
            "labels": {"cost-center": "cc-4711", "cost.example.org/team": "support"},
            "annotations": {"cost.example.org/project": "support bot"},
        },
    )
)


def _attempt(number: int, found: FactsStatus | None = None) -> Callable[[JobMaker, FineTuneRuntimeSpec], Manifests]:
    def build(job: JobMaker, runtime: FineTuneRuntimeSpec) -> Manifests:
        snapshot, known = a_snapshot(job, runtime), found or facts()
        return build_attempt(job.build(), snapshot, known, plan_attempt(snapshot, known), number)

    return build


CASES: dict[str, Manifests] = {
    "snapshot": _snapshot(a_job(), a_runtime()),
    "prepare-minimal": _prepare(a_job(), a_runtime()),
    "prepare-from-the-hub": _prepare(HUB_JOB, GPU_RUNTIME),
    "attempt-minimal": _attempt(1)(a_job(), a_runtime()),
    "attempt-on-gpus": _attempt(3)(GPU_JOB, GPU_RUNTIME),
    "prepare-qlora-fsdp-s3": _prepare(S3_JOB, GPU_RUNTIME),
    "attempt-qlora-fsdp-s3": _attempt(1, packed_facts())(S3_JOB, GPU_RUNTIME),
    "prepare-tenant": _prepare(TENANT_JOB, TENANT_RUNTIME),
    "attempt-tenant": _attempt(1)(TENANT_JOB, TENANT_RUNTIME),
    "attempt-full": _attempt(1)(FULL_JOB, GPU_RUNTIME),
}
EACH = pytest.mark.parametrize("case", sorted(CASES))


class _Dumper(yaml.SafeDumper):
    """Configurations readable as blocks, nothing abbreviated."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None),
)


def _jobs(case: str) -> Manifests:
    return [item for item in CASES[case] if item["kind"] == "Job"]


@EACH
def test_manifests_are_as_recorded(case: str) -> None:
    """A change of what is created is a change of these files, seen in review."""
    path = GOLDEN / f"{case}.yaml"
    text = yaml.dump_all(CASES[case], Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@EACH
def test_configuration_is_what_the_trainer_reads(case: str) -> None:
    """The same models on both sides; unknown keys are refused."""
    for item in CASES[case]:
        if item["kind"] == "ConfigMap" and "config.json" in item["data"]:
            model = PrepareConfig if "prepare" in case else TrainConfig
            model.model_validate_json(item["data"]["config.json"])


@EACH
def test_pods_mount_the_configuration_created_with_them(case: str) -> None:
    """And every mount has its volume."""
    names = {item["metadata"]["name"] for item in CASES[case] if item["kind"] == "ConfigMap"}
    for job in _jobs(case):
        spec = job["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["config"]["configMap"]["name"] in names
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)


@EACH
def test_pods_keep_to_the_restricted_profile(case: str) -> None:
    """Pod Security admission ``restricted``, and what it does not ask for: no token, read-only root."""
    for job in _jobs(case):
        spec = job["spec"]["template"]["spec"]
        assert restricted_violations(spec) == []
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


@EACH
def test_children_belong_to_the_job(case: str) -> None:
    """They are found by label and die with their owner, whose deletion never waits for them."""
    for item in CASES[case]:
        meta = item["metadata"]
        (owner,) = meta["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("FineTuneJob", "support", True)
        assert owner["blockOwnerDeletion"] is False
        assert meta["labels"]["finetune-operator.io/job"] == "support"
        assert meta["labels"]["finetune-operator.io/job-uid"] == owner["uid"]
        template = item.get("spec", {}).get("template")
        if template is not None:
            assert (
                template["metadata"]["labels"].items()
                >= {
                    key: value for key, value in meta["labels"].items() if not key.startswith("kueue.x-k8s.io/")
                }.items()
            )


@EACH
def test_config_maps_are_immutable(case: str) -> None:
    """What an attempt was started with never changes."""
    assert all(item["immutable"] for item in CASES[case] if item["kind"] == "ConfigMap")
