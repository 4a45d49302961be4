"""Bad input: refused at admission, or a condition that names field, value and remedy; never final when it can heal."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.kubectl import Json, Kubectl, KubectlError, condition, is_true
from jobs import a_claim, a_job, a_runtime

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("runtime")]


def without(job: Json, field: str) -> Json:
    """The job less one field of its spec."""
    return {**job, "spec": {key: value for key, value in job["spec"].items() if key != field}}


PACKED = {"persistentVolumeClaim": {"claimName": "datasets", "path": "d.jsonl"}, "packing": True}


@pytest.mark.parametrize(
    ("manifest", "parts"),
    [
        pytest.param(
            without(a_job(), "method"),
            ["spec", "method must have exactly one of: full, lora, qlora", "r: 16"],
            id="no method",
        ),
        pytest.param(a_job(method={"magic": {"r": 1}}), ["unknown field", "magic"], id="unknown method"),
        pytest.param(
            a_job(method={"lora": {}, "qlora": {}}),
            ["spec", "method must have exactly one of: full, lora, qlora"],
            id="two methods",
        ),
        pytest.param(
            a_job(method={"qlora": {}, "full": {}}),
            ["spec", "exactly one of: full, lora, qlora", "quantised weights cannot be updated", "remove one of them"],
            id="qlora and full",
        ),
        pytest.param(a_job(method={"full": {"r": 1}}), ["unknown field", "spec.method.full.r"], id="full with a rank"),
        pytest.param(
            a_job(method={"qlora": {"quantType": "int8"}}),
            ["spec.method.qlora.quantType", "int8", "nf4", "fp4"],
            id="unknown quantisation",
        ),
        pytest.param(
            a_job(distributed={"strategy": "fsdp"}),
            ["spec.distributed.strategy", "fsdp", "DDP", "FSDP", "ZeRO2", "ZeRO3"],
            id="unknown strategy",
        ),
        pytest.param(
            a_job(training={"optim": "Adam W"}), ["spec.training.optim", "Adam W", "should match"], id="optimizer"
        ),
        pytest.param(
            a_job(checkpoint={"uri": "gs://bucket/a"}),
            ["spec.checkpoint.uri", "must be s3://bucket/prefix", "e.g. s3://finetune/checkpoints"],
            id="checkpoints in another store",
        ),
        pytest.param(
            a_job(output={"uri": "s3://bucket/a/../b"}), ["spec.output.uri", "no '..'"], id="prefix leads out"
        ),
        pytest.param(
            a_job(output={"uri": "s3://bucket/a//b"}), ["spec.output.uri", "must be s3://"], id="empty segment"
        ),
        pytest.param(
            a_job(checkpoint={"uri": "s3://finetune", "persistentVolumeClaim": {"claimName": "c"}}),
            ["spec.checkpoint", "at most one of: uri, persistentVolumeClaim"],
            id="checkpoints in two places",
        ),
        pytest.param(
            a_job(checkpoint={"secretRef": {"name": "s"}}),
            ["spec.checkpoint", "secretRef must be used with uri only"],
            id="credentials without a bucket",
        ),
        pytest.param(
            a_job(output={"persistentVolumeClaim": {"claimName": "c"}, "secretRef": {"name": "s"}}),
            ["spec.output", "secretRef must be used with uri only"],
            id="credentials for a volume",
        ),
        pytest.param(a_job(output={}), ["spec.output", "exactly one of: uri, persistentVolumeClaim"], id="no output"),
        pytest.param(
            a_job(method={"lora": {"r": 0}}),
            ["spec.method.lora.r", "Invalid value: 0", "greater than or equal to 1"],
            id="r is 0",
        ),
        pytest.param(
            a_job("a" * 46), ["metadata.name", "at most 45 characters", "choose a shorter name"], id="name too long"
        ),
        pytest.param(a_job("1quick"), ["metadata.name", "1quick", "should match"], id="name begins with a digit"),
        pytest.param(
            a_job(model={"uri": "file:///etc"}),
            ["spec.model", "file:///etc", "must start with hf://", "use persistentVolumeClaim"],
            id="file URI",
        ),
        pytest.param(
            a_job(model={"persistentVolumeClaim": {"claimName": "models", "path": "a/../../b"}}),
            ["spec.model.persistentVolumeClaim", "must not contain '..'"],
            id="path leads out",
        ),
        pytest.param(a_job(model={}), ["spec.model", "exactly one of: uri, persistentVolumeClaim"], id="no location"),
        pytest.param(
            a_job(training={"maxSteps": 1, "numTrainEpochs": 1}),
            ["spec.training", "at most one of: numTrainEpochs, maxSteps"],
            id="two lengths",
        ),
        pytest.param(
            a_job(training={"learningRate": "2e-4"}),
            ["spec.training.learningRate", "string", "number"],
            id="learning rate as a string",
        ),
        pytest.param(
            a_job(evaluation={"prompts": ["p"] * 9}),
            ["spec.evaluation.prompts", "must have at most 8 items"],
            id="nine prompts",
        ),
    ],
)
def test_the_api_server_refuses(kubectl: Kubectl, manifest: Json, parts: list[str]) -> None:
    """The error names the field, the value where there is one, and what would be right."""
    with pytest.raises(KubectlError) as refused:
        kubectl.create(manifest, dry_run=True)

    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"method": {"full": {}}}, id="full"),
        pytest.param(
            {
                "method": {"qlora": {"quantStorage": "bfloat16"}},
                "distributed": {"strategy": "ZeRO3", "cpuOffload": True},
            },
            id="qlora",
        ),
        pytest.param(
            {
                "checkpoint": {"uri": "s3://finetune/checkpoints/", "secretRef": {"name": "s3"}, "intervalSeconds": 60},
                "output": {"uri": "s3://" + "b" * 63 + "/adapters.v1/team_a", "secretRef": {"name": "s3"}},
            },
            id="buckets",
        ),
        pytest.param({"checkpoint": {"intervalSeconds": 0}}, id="checkpoints in the runtime's storage"),
        pytest.param({"training": {"optim": "adamw_torch_fused"}, "dataset": PACKED}, id="packing"),
    ],
)
def test_the_api_server_takes(kubectl: Kubectl, spec: dict[str, Any]) -> None:
    """Each way to train and each place to write to."""
    kubectl.create(a_job(**spec), dry_run=True)


def wait_until_refused(kubectl: Kubectl, reason: str) -> Json:
    """The job as soon as its condition Accepted is False for this reason."""
    return kubectl.wait_for(
        "ftj",
        "quick",
        lambda job: condition(job, "Accepted").get("reason") == reason,
        seconds=15,
        what=f"Accepted=False, {reason}",
    )


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("spec", "reason", "parts"),
    [
        pytest.param(
            {"placement": [{"nodes": 2, "gpusPerNode": 8}]},
            "PlacementTooLarge",
            ["spec.placement[0]", "gpusPerNode 8", "pool 'default' has 2 x 2", "ask for fewer"],
            id="more GPUs than any pool has",
        ),
        pytest.param(
            {"placement": [{"pool": "moon"}]},
            "PoolNotFound",
            ["spec.placement[0].pool", "'moon'", "name one of: default"],
            id="unknown pool",
        ),
        pytest.param(
            {"distributed": {"strategy": "DDP", "cpuOffload": True}},
            "SettingsConflict",
            ["spec.distributed.cpuOffload", "spec.distributed.strategy DDP", "remove cpuOffload"],
            id="settings that exclude each other",
        ),
    ],
)
def test_what_only_an_edit_can_mend_is_stalled(
    kubectl: Kubectl, spec: dict[str, Any], reason: str, parts: list[str]
) -> None:
    """GitOps tools report it at once; an edit of the job heals it."""
    kubectl.create(a_job(**spec))

    job = wait_until_refused(kubectl, reason)
    assert is_true(job, "Stalled")
    assert not is_true(job, "Reconciling")
    for part in parts:
        assert part in condition(job, "Accepted")["message"]
    assert kubectl.find("job", "quick-prepare") is None
    kubectl.patch("ftj", "quick", {"spec": {"placement": [{"nodes": 2}], "distributed": None}})
    job = kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Accepted"), seconds=10, what="Accepted")
    assert not is_true(job, "Stalled")


@pytest.mark.usefixtures("operator")
def test_a_missing_runtime_is_waited_for(kubectl: Kubectl) -> None:
    """The job may be applied before its runtime; it goes on within seconds of the runtime's creation."""
    name = f"late-{kubectl.namespace}"
    kubectl.create(a_job(runtimeRef={"name": name}))
    job = wait_until_refused(kubectl, "RuntimeNotFound")
    assert is_true(job, "Reconciling")
    assert f"'{name}' does not exist" in job["status"]["message"]

    kubectl.create(a_runtime(name))

    kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Accepted"), seconds=10, what="Accepted")


@pytest.mark.usefixtures("operator")
def test_a_missing_claim_is_waited_for(kubectl: Kubectl) -> None:
    """The message names field, claim and namespace; the next pass, which comes after 30 s at the latest, finds it."""
    location = {"persistentVolumeClaim": {"claimName": "late", "path": "m"}}
    kubectl.create(a_job(model=location))
    job = wait_until_refused(kubectl, "PersistentVolumeClaimNotFound")
    assert is_true(job, "Reconciling")
    for part in ("spec.model.persistentVolumeClaim.claimName", "'late'", kubectl.namespace, "create it"):
        assert part in job["status"]["message"]

    kubectl.create(a_claim("late"))
    kubectl.run("annotate", "ftj", "quick", "test/look=again")

    kubectl.wait_for("ftj", "quick", lambda job: is_true(job, "Accepted"), seconds=10, what="Accepted")


@pytest.mark.usefixtures("operator")
def test_a_namespace_that_the_runtime_does_not_allow_is_refused(kubectl: Kubectl) -> None:
    """The message names the runtime, the namespace and whom to ask."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "somewhere-else"}}
    kubectl.apply(a_runtime("private", allowedNamespaces=selector))
    kubectl.create(a_job(runtimeRef={"name": "private"}))

    job = wait_until_refused(kubectl, "NamespaceNotAllowed")

    assert is_true(job, "Stalled")
    for part in ("'private'", kubectl.namespace, "ask its owner"):
        assert part in job["status"]["message"]
