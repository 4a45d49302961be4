"""Whatever a tenant writes into a FineTuneJob: what its pods are, and what they never are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.builders.attempt import build_attempt
from finetune_operator.builders.prepare import build_prepare
from finetune_operator.core.checks import first_violation
from finetune_operator.core.planner.plan import plan_attempt
from makers import JobMaker, a_job, a_pool, a_runtime, a_snapshot, facts, observed
from openapi import schema_of, violations
from pod_security import restricted_violations
from strategies import job_specs

pytestmark = pytest.mark.unit

RUNTIME = a_runtime(
    a_pool("spot", gpusPerNode=4, nodeSelector={"pool": "spot"}, tolerations=[{"key": "gpu", "operator": "Exists"}]),
    a_pool("large", gpusPerNode=4),
    serviceAccountName="finetune",
    imagePullSecrets=["registry"],
    env=[{"name": "HF_ENDPOINT", "value": "https://hub.example.org"}, {"name": "HF_TOKEN", "value": "t"}],
)
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
ANY_SPEC = given(job_specs("spot", "large"))
PATIENT = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None)


def pods(job: JobMaker) -> dict[str, dict[str, Any]]:
    """The pod templates of both stages."""
    snapshot = a_snapshot(job, RUNTIME)
    return {
        "prepare": build_prepare(job.build(), snapshot)[-1]["spec"]["template"],
        "train": build_attempt(job.build(), snapshot, facts(), plan_attempt(snapshot, facts()), 1)[-1]["spec"][
            "template"
        ],
    }


@PATIENT
@ANY_SPEC
def test_the_specs_that_are_tried_are_specs(spec: dict[str, Any]) -> None:
    """Else the tests below would try nothing."""
    assert list(violations(schema_of("finetunejobs")["properties"]["spec"], spec, "spec")) == []
    FineTuneJobSpec.model_validate(spec)
    violation = first_violation(observed(JobMaker(spec), runtime=RUNTIME))
    event(violation.reason if violation else "accepted")


@PATIENT
@ANY_SPEC
def test_no_job_makes_a_pod_that_is_not_restricted(spec: dict[str, Any]) -> None:
    """Even one that acceptance would refuse: neither of the two gates leans on the other."""
    for template in pods(JobMaker(spec)).values():
        assert restricted_violations(template["spec"], template["metadata"].get("annotations")) == []


@PATIENT
@ANY_SPEC
def test_a_job_decides_nothing_of_its_pods_but_what_is_listed_here(spec: dict[str, Any]) -> None:
    """All else is the same for every job in the same pool of the same runtime."""
    job = JobMaker(spec)
    for stage, template in pods(job).items():
        pool = template["spec"].get("nodeSelector", {}).get("pool", "large")
        plain = pods(a_job().on(pool=pool))[stage]
        assert what_the_runtime_decides(template) == what_the_runtime_decides(plain)


def what_the_runtime_decides(template: dict[str, Any]) -> dict[str, Any]:
    """A pod less claims, credentials, priority, metadata, and how many processes share it."""
    pod = dict(template["spec"])
    pod.pop("priorityClassName", None)
    [container] = pod.pop("containers")
    config, *volumes = pod["volumes"]
    assert config["configMap"].keys() == {"name"}  # it is named by its content
    pod["volumes"] = [volume for volume in volumes if "persistentVolumeClaim" not in volume]
    pod["container"] = {
        key: value for key, value in container.items() if key not in ("env", "volumeMounts", "resources")
    }
    pod["env"] = [item for item in container["env"] if "valueFrom" not in item]
    pod["mounts"] = [item for item in container["volumeMounts"] if not item["mountPath"].startswith("/mnt/finetune/")]
    pod["resource names"] = {kind: sorted(names) for kind, names in container["resources"].items()}
    labels = template["metadata"]["labels"]
    pod["labels"] = {key: labels[key] for key in labels if key.startswith(("finetune-operator.io/", "app."))}
    pod["labels"].pop("finetune-operator.io/run")
    return pod


@PATIENT
@ANY_SPEC
def test_what_a_job_decides_stays_in_its_namespace(spec: dict[str, Any]) -> None:
    """Claims by name, known keys of the Secrets that it names, metadata that never replaces the operator's."""
    job = JobMaker(spec)
    secrets = {spec.get(role, {}).get("secretRef", {}).get("name") for role in ("checkpoint", "output")}
    for template in pods(job).values():
        [container] = template["spec"]["containers"]
        for variable in container["env"]:
            if "valueFrom" in variable:
                assert set(variable["valueFrom"]) == {"secretKeyRef"}
                reference = variable["valueFrom"]["secretKeyRef"]
                assert set(reference) <= {"name", "key", "optional"}
                assert reference["name"] in secrets
                assert reference["key"] in KEYS
        for volume in template["spec"]["volumes"]:
            (kind,) = set(volume) - {"name"}
            assert kind in ("configMap", "emptyDir", "persistentVolumeClaim")
            assert kind != "persistentVolumeClaim" or set(volume[kind]) == {"claimName", "readOnly"}
        metadata = template["metadata"]
        assert set(metadata) <= {"labels", "annotations"}
        given_labels = spec.get("podMetadata", {}).get("labels", {})
        assert given_labels.items() <= metadata["labels"].items()
        assert metadata.get("annotations", {}) == spec.get("podMetadata", {}).get("annotations", {})


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_the_operators_labels_win(stage: str) -> None:
    """Also over what got past the CRD and the models: pods are found by them."""
    labels = {"finetune-operator.io/job": "other", "app.kubernetes.io/managed-by": "me", "team": "a"}
    job = a_job()
    snapshot = a_snapshot(job)
    metadata = snapshot.spec.pod_metadata.model_copy(update={"labels": labels})
    snapshot = snapshot.model_copy(update={"spec": snapshot.spec.model_copy(update={"pod_metadata": metadata})})
    if stage == "prepare":
        child = build_prepare(job.build(), snapshot)[-1]
    else:
        child = build_attempt(job.build(), snapshot, facts(), plan_attempt(snapshot, facts()), 1)[-1]
    found = child["spec"]["template"]["metadata"]["labels"]
    assert found == child["metadata"]["labels"] | {"team": "a"}


VIOLATIONS = {
    "sysctl": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    "hostProcess": {"securityContext": {"windowsOptions": {"hostProcess": True}}},
    "appArmorProfile": {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
    "seLinuxOptions": {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
    "hostPort": {"ports": [{"hostPort": 80}]},
    "procMount": {"own": {"procMount": "Unmasked"}},
    "privileged": {"own": {"privileged": True}},
    "host of a probe": {"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}},
}


@given(st.sampled_from(sorted(VIOLATIONS)))
def test_the_checker_sees_each_violation(name: str) -> None:
    """A checker that finds nothing proves nothing."""
    pod = pods(a_job())["train"]["spec"]
    [container] = pod["containers"]
    change = dict(VIOLATIONS[name])
    pod["securityContext"] |= change.pop("securityContext", {})
    container["securityContext"] |= change.pop("own", {})
    container |= change
    [found] = restricted_violations(pod)
    assert name in found
