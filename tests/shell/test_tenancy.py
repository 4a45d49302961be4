"""A tenant may create FineTuneJobs in its namespace and nothing else: what it cannot get by that.

The tenant is a user with a token and a Role of its own on a real API server; the namespace enforces Pod Security
``restricted``, so every pod that the Job controller makes here was admitted by the real admission plugin.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from apiserver import ApiServer, find_binaries
from e2e.kubectl import Json, Kubectl, KubectlError, condition, is_true
from jobs import CLAIMS, a_claim, a_job, a_runtime
from pod_security import restricted_violations
from pod_status import finish_prepare, wait_for_pods

pytestmark = pytest.mark.api
_numbers = itertools.count(1)

GROUP = "finetune-operator.io"
NAMESPACE = "team-a"
SECRET = "database"
STATUS_PATH = f"/apis/{GROUP}/v1alpha1/namespaces/{NAMESPACE}/finetunejobs/mine/status"


def the_tenants_role() -> list[Json]:
    """What the tenant may do, and its account."""
    subject = {"kind": "ServiceAccount", "name": "tenant", "namespace": NAMESPACE}
    rbac = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [GROUP], "resources": ["finetunejobs"], "verbs": ["create", "get", "list", "delete"]}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tenant"}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "tenant"}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "tenant"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "tenant"},
            "subjects": [subject],
        },
    ]


@pytest.fixture(scope="module")
def admin(api_server: ApiServer) -> Iterator[Kubectl]:
    """The tenant's namespace as its owner sees it: restricted pods only, a Secret, and a runtime with bounds."""
    binaries = find_binaries()
    assert binaries is not None
    root = Kubectl(api_server.kubeconfig, binaries / "kubectl")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    root.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    values = {"password": "hunter2", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    admin = root.in_namespace(NAMESPACE)
    admin.create(
        *(a_claim(claim) for claim in CLAIMS),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": values},
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "training-low"},
            "value": -10,
        },
        a_runtime(
            "bounded",
            allowedUriPrefixes=["hf://org/", "hf://datasets/org/", "s3://finetune/{namespace}/"],
            allowedPriorityClassNames=["training-low"],
            allowedPodMetadataPrefixes=["cost.example.org/"],
            env=[{"name": "HF_ENDPOINT", "value": "https://hub.example.org"}],
        ),
    )
    yield admin
    admin.run("delete", "finetunejobs", "--all", "--wait=false")  # their gangs would hold the pool for ever


@pytest.fixture(scope="module")
def tenant(api_server: ApiServer, admin: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl with a token of the tenant's own."""
    admin.create(*the_tenants_role())
    kubeconfig = tmp_path_factory.mktemp("tenant") / "kubeconfig"
    api_server.write_kubeconfig(kubeconfig)
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": admin.run("create", "token", "tenant").strip()}
    kubeconfig.write_text(yaml.safe_dump(config))
    return Kubectl(kubeconfig, admin.binary, NAMESPACE)


def a_tenants_job(name: str = "quick", **spec: Any) -> Json:
    """On the bounded runtime."""
    return a_job(name, **{"runtimeRef": {"name": "bounded"}, **spec})


CLAIM = {"claimName": "models", "path": "m"}
SECRET_KEY = {"secretKeyRef": {"name": SECRET, "key": "password"}}

UNKNOWN_FIELDS: dict[str, tuple[str, Any]] = {
    "env variable": ("env", [{"name": "HF_ENDPOINT", "value": "http://evil"}]),
    "env from a Secret's key": ("env", [{"name": "A", "valueFrom": SECRET_KEY}]),
    "env from a whole Secret": ("envFrom", [{"secretRef": {"name": SECRET}}]),
    "other keys of a Secret": ("output", {"uri": "s3://finetune/x", "secretRef": {"name": SECRET, "key": "password"}}),
    "Secret of another namespace": (
        "output",
        {"uri": "s3://finetune/x", "secretRef": {"name": SECRET, "namespace": "kube-system"}},
    ),
    "claim of another namespace": ("model", {"persistentVolumeClaim": {**CLAIM, "namespace": "kube-system"}}),
    "runtime of another namespace": ("runtimeRef", {"name": "bounded", "namespace": "kube-system"}),
    "host path": ("model", {"persistentVolumeClaim": CLAIM, "hostPath": {"path": "/"}}),
    "volumes": ("volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
    "privileged": ("securityContext", {"privileged": True}),
    "host network": ("hostNetwork", True),
    "service account": ("serviceAccountName", "cluster-admin"),
    "token": ("automountServiceAccountToken", True),
    "node name": ("nodeName", "control-plane"),
    "node selector": ("placement", [{"nodes": 1, "nodeSelector": {"a": "b"}}]),
    "tolerations": ("placement", [{"nodes": 1, "tolerations": [{"operator": "Exists"}]}]),
    "image": ("image", "evil"),
    "command": ("command", ["sh"]),
    "pod template": ("podTemplate", {"spec": {"hostPID": True}}),
    "pod finalizers": ("podMetadata", {"finalizers": ["a/b"]}),
    "pod owner": ("podMetadata", {"ownerReferences": [{"kind": "Node"}]}),
}
"""Attempt -> field of the spec and its value: none of these exists."""


@pytest.mark.parametrize(("field", "value"), UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS.keys())
def test_fields_that_could_reach_further_do_not_exist(tenant: Kubectl, field: str, value: Any) -> None:
    """Strict validation names the field."""
    with pytest.raises(KubectlError, match=rf'unknown field "spec\.{field}') as refused:
        tenant.run("create", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(a_tenants_job(**{field: value})))
    assert "hunter2" not in str(refused.value)


REFUSED_VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "file URI as model": ({"model": {"uri": "file:///etc"}}, ["spec.model", "must start with hf://"]),
    "file URI as dataset": ({"dataset": {"uri": "file:///etc/passwd"}}, ["spec.dataset", "must start with hf://"]),
    "file URI as output": ({"output": {"uri": "file:///"}}, ["spec.output.uri", "must be s3://"]),
    "another scheme": ({"model": {"uri": "https://evil/m"}}, ["spec.model", "must start with hf://"]),
    "credentials in a URI": ({"output": {"uri": "s3://a:b@bucket/x"}}, ["spec.output.uri", "must be s3://"]),
    "endpoint in a URI": ({"output": {"uri": "s3://bucket/x?endpoint=evil"}}, ["spec.output.uri", "must be s3://"]),
    "path out of a volume": (
        {"model": {"persistentVolumeClaim": {"claimName": "models", "path": "../../etc"}}},
        ["spec.model.persistentVolumeClaim", "must not contain '..'"],
    ),
    "absolute path": (
        {"model": {"persistentVolumeClaim": {"claimName": "models", "path": "/etc"}}},
        ["spec.model.persistentVolumeClaim.path", "/etc"],
    ),
    "claim by path": (
        {"model": {"persistentVolumeClaim": {"claimName": "../other/claim"}}},
        ["spec.model.persistentVolumeClaim.claimName"],
    ),
    "Secret by path": (
        {"output": {"uri": "s3://finetune/x", "secretRef": {"name": "kube-system/x"}}},
        ["spec.output.secretRef.name", "kube-system/x"],
    ),
    "Secret without a bucket": (
        {"checkpoint": {"secretRef": {"name": SECRET}}},
        ["spec.checkpoint", "secretRef must be used with uri only"],
    ),
    "label of Kubernetes": (
        {"podMetadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}},
        ["spec.podMetadata.labels", "app.kubernetes.io/managed-by", "must not be one of Kubernetes"],
    ),
    "label of a queue": (
        {"podMetadata": {"labels": {"kueue.x-k8s.io/queue-name": "vip"}}},
        ["spec.podMetadata.labels", "kueue.x-k8s.io/queue-name", "must not be one of Kubernetes"],
    ),
    "label of the operator": (
        {"podMetadata": {"labels": {"team": "a", "finetune-operator.io/job": "other"}}},
        ["spec.podMetadata.labels", "finetune-operator.io/job", "use a key of your own"],
    ),
    "label of the Job controller": (
        {"podMetadata": {"labels": {"job-name": "other"}}},
        ["spec.podMetadata.labels", "job-name", "use a key of your own"],
    ),
    "seccomp by annotation": (
        {"podMetadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}},
        ["spec.podMetadata.annotations", "container.apparmor", "must not be one of Kubernetes"],
    ),
    "key that is none": (
        {"podMetadata": {"labels": {"a/b/c": "d"}}},
        ["spec.podMetadata.labels", "key a/b/c", "must be a name"],
    ),
    "label value that is none": ({"podMetadata": {"labels": {"a": "b c"}}}, ["spec.podMetadata.labels.a", "b c"]),
    "too many labels": (
        {"podMetadata": {"labels": {f"l{number}": "" for number in range(17)}}},
        ["spec.podMetadata.labels", "at most 16"],
    ),
    "priority class that is no name": ({"priorityClassName": "a b"}, ["spec.priorityClassName", "a b"]),
}


@pytest.mark.parametrize(("spec", "parts"), REFUSED_VALUES.values(), ids=REFUSED_VALUES.keys())
def test_values_that_lead_out_are_refused(tenant: Kubectl, spec: dict[str, Any], parts: list[str]) -> None:
    """At admission, with the field."""
    with pytest.raises(KubectlError) as refused:
        tenant.run("create", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(a_tenants_job(**spec)))
    for part in parts:
        assert part in str(refused.value)


CONDITIONS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "foreign model": (
        {"model": {"uri": "hf://evil/model"}},
        "UriNotAllowed",
        [
            "spec.model.uri",
            "'hf://evil/model'",
            "must begin with one of: hf://org/, hf://datasets/org/, s3://finetune/",
        ],
    ),
    "foreign dataset": (
        {"dataset": {"uri": "hf://datasets/evil/d/a.jsonl"}},
        "UriNotAllowed",
        ["spec.dataset.uri", "'hf://datasets/evil/d/a.jsonl'"],
    ),
    "foreign held-out rows": (
        {"dataset": {"uri": "hf://datasets/org/d/a.jsonl", "eval": {"uri": "hf://datasets/evil/d/a.jsonl"}}},
        "UriNotAllowed",
        ["spec.dataset.eval.uri", "'hf://datasets/evil/d/a.jsonl'"],
    ),
    "checkpoints of another namespace": (
        {"checkpoint": {"uri": "s3://finetune/team-b/x", "secretRef": {"name": SECRET}}},
        "UriNotAllowed",
        ["spec.checkpoint.uri", "'s3://finetune/team-b/x'"],
    ),
    "results beside the prefix": (
        {"output": {"uri": "s3://finetune/team-a2/x"}},
        "UriNotAllowed",
        ["spec.output.uri", "s3://finetune/team-a/;"],
    ),
    "encoded dots": (
        {"model": {"uri": "hf://org/model@%2e%2e%2fevil"}},
        "UriNotAllowed",
        ["spec.model.uri", "must not contain '..'"],
    ),
    "priority of the cluster": (
        {"priorityClassName": "system-node-critical"},
        "PriorityClassNotAllowed",
        ["spec.priorityClassName", "'system-node-critical'", "name one of: training-low"],
    ),
    "sidecar by label": (
        {"podMetadata": {"labels": {"sidecar.istio.io/inject": "true"}}},
        "PodMetadataNotAllowed",
        ["spec.podMetadata.labels", "'sidecar.istio.io/inject'"],
    ),
    "sidecar by annotation": (
        {"podMetadata": {"annotations": {"linkerd.io/inject": "enabled"}}},
        "PodMetadataNotAllowed",
        ["spec.podMetadata.annotations", "'linkerd.io/inject'"],
    ),
}


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("spec", "reason", "parts"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_what_the_runtime_does_not_allow_is_never_accepted(
    admin: Kubectl, tenant: Kubectl, spec: dict[str, Any], reason: str, parts: list[str]
) -> None:
    """The tenant reads why in the status; no pod and no snapshot came of it."""
    name = f"refused-{next(_numbers)}"
    tenant.create(a_tenants_job(name, **spec))

    job = wait_until_refused(tenant, name, reason)

    assert (condition(job, "Accepted")["status"], is_true(job, "Stalled")) == ("False", True)
    for part in parts:
        assert part in condition(job, "Accepted")["message"]
    assert admin.find("job", f"{name}-prepare") is None
    assert admin.find("configmap", f"{name}-run") is None


def wait_until_refused(kubectl: Kubectl, name: str, reason: str) -> Json:
    """The job as soon as its condition Accepted is False for this reason."""
    return kubectl.wait_for(
        "ftj", name, lambda job: condition(job, "Accepted").get("reason") == reason, seconds=15, what=reason
    )


def smuggled() -> Json:
    """Everything that does not exist at once, in a job that is fine otherwise."""
    job = a_tenants_job(
        "smuggler",
        checkpoint={"uri": "s3://finetune/team-a/c", "secretRef": {"name": SECRET, "key": "password"}},
        output={"uri": "s3://finetune/team-a/o", "secretRef": {"name": SECRET, "namespace": "kube-system"}},
        model={"persistentVolumeClaim": {**CLAIM, "namespace": "kube-system"}, "hostPath": {"path": "/"}},
        placement=[{"nodes": 2, "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}],
        priorityClassName="training-low",
        podMetadata={
            "labels": {"team": "a", "cost.example.org/team": "b"},
            "annotations": {"cost.example.org/project": "$(FINETUNE_OUTPUT_AWS_SECRET_ACCESS_KEY)"},
            "finalizers": ["a/b"],
        },
    )
    taken = ("output", "model", "placement", "podMetadata", "runtimeRef")
    job["spec"] |= {field: value for field, value in UNKNOWN_FIELDS.values() if field not in taken}
    return job


@pytest.mark.usefixtures("operator")
def test_nothing_that_was_pruned_came_through(admin: Kubectl, tenant: Kubectl) -> None:
    """With validation switched off the server prunes; the pods of both stages hold what the runtime says."""
    tenant.run("create", "--validate=ignore", "-f", "-", stdin=yaml.safe_dump(smuggled()))
    prepare = wait_for_pods(admin, "smuggler-prepare", 1)
    finish_prepare(admin, "smuggler")
    train = wait_for_pods(admin, "smuggler-a1", 2)

    stored = tenant.get("ftj", "smuggler")["spec"]
    assert not {"env", "envFrom", "volumes", "securityContext", "hostNetwork", "serviceAccountName"} & stored.keys()
    for pod in prepare + train:
        assert_nothing_came_through(pod)


def assert_nothing_came_through(pod: Json) -> None:
    """What the job gave is in its place, and nothing else is there."""
    spec, metadata = pod["spec"], pod["metadata"]
    [container] = spec["containers"]
    assert restricted_violations(spec, metadata.get("annotations")) == []
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("default", False)
    assert "initContainers" not in spec
    assert "nodeSelector" not in spec
    assert "finalizers" not in metadata or metadata["finalizers"] == ["batch.kubernetes.io/job-tracking"]
    assert container["image"] == "localhost/finetune-trainer:dev"
    assert container["command"][:3] == ["python", "-m", "finetune_trainer"]
    assert "envFrom" not in container
    for variable in container["env"]:
        if variable["name"] == "JOB_COMPLETION_INDEX":  # the Job controller's own
            assert set(variable["valueFrom"]) == {"fieldRef"}
        elif "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["name"] == SECRET
            assert reference["key"] in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
            assert variable["name"].endswith(reference["key"])
    plain = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    assert plain["HF_ENDPOINT"] == "https://hub.example.org"
    assert "A" not in plain
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"configMap", "emptyDir", "persistentVolumeClaim"}
    claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in spec["volumes"]} - {None}
    assert claims == {"models", "datasets", "finetune-storage"}
    assert (spec["priorityClassName"], spec["priority"]) == ("training-low", -10)
    assert metadata["labels"]["team"] == "a"
    assert metadata["labels"]["cost.example.org/team"] == "b"
    assert metadata["labels"]["finetune-operator.io/job"] == "smuggler"
    assert metadata["annotations"]["cost.example.org/project"].startswith("$(")


COMPLETE = '{"status": {"phase": "Complete"}}'
FORBIDDEN: dict[str, tuple[list[str], Json | None]] = {
    "runtime": (["create", "-f", "-"], a_runtime("mine")),
    "wider runtime": (["apply", "-f", "-"], a_runtime("bounded", allowedUriPrefixes=["hf://"])),
    "no runtime": (["delete", "finetuneruntime", "bounded"], None),
    "status": (["patch", "ftj", "mine", "--subresource=status", "--type=merge", "-p", COMPLETE], None),
    "whole status": (["replace", "--raw", STATUS_PATH, "-f", "-"], a_job("mine")),
    "Secret": (["get", "secret", SECRET], None),
    "pods": (["get", "pods"], None),
    "claim": (["create", "-f", "-"], a_claim("own")),
    "token": (["create", "token", "default"], None),
    "jobs of another namespace": (["get", "ftj", "-n", "kube-system"], None),
}


@pytest.mark.parametrize(("arguments", "manifest"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_the_tenants_role_allows_nothing_else(tenant: Kubectl, arguments: list[str], manifest: Json | None) -> None:
    """Runtimes are the platform team's, and the status is the operator's."""
    if tenant.find("ftj", "mine") is None:
        tenant.create(a_tenants_job("mine", suspend=True))
    with pytest.raises(KubectlError, match=r"[Ff]orbidden"):
        tenant.run(*arguments, stdin=yaml.safe_dump(manifest) if manifest else None)


def test_a_status_that_is_sent_with_the_job_is_dropped(tenant: Kubectl) -> None:
    """A run is what the operator accepted, not what a tenant says it is."""
    manifest = a_tenants_job("boasting", suspend=True)
    manifest["status"] = {"observedGeneration": 7, "phase": "Complete", "run": {"digest": "f" * 64}}
    tenant.create(manifest)
    status = tenant.get("ftj", "boasting").get("status", {})
    assert status.get("run", {}).get("digest") != "f" * 64
    assert status.get("phase") != "Complete"


@pytest.mark.usefixtures("operator")
def test_a_runtime_of_other_namespaces_is_refused(admin: Kubectl, tenant: Kubectl) -> None:
    """Nothing of it is told but its name."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "somewhere-else"}}
    admin.apply(a_runtime("closed", allowedNamespaces=selector, allowedUriPrefixes=["hf://secret-project/"]))
    tenant.create(a_tenants_job("outsider", runtimeRef={"name": "closed"}, model={"uri": "hf://org/name"}))

    job = wait_until_refused(tenant, "outsider", "NamespaceNotAllowed")

    assert "secret-project" not in yaml.safe_dump(job["status"])


def test_the_namespace_admits_restricted_pods_only(admin: Kubectl) -> None:
    """Else the pods that were admitted above would prove nothing."""
    pod = {"hostNetwork": True, "containers": [{"name": "c", "image": "i"}]}
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}, dry_run=True)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("allowedPriorityClassNames", ["low", "system-node-critical"], "must not hold names that begin with system-"),
        ("allowedPodMetadataPrefixes", ["kueue.x-k8s.io/"], "must not hold prefixes of Kubernetes"),
        ("allowedPodMetadataPrefixes", ["finetune-operator.io/"], "must not hold prefixes of Kubernetes"),
        ("allowedPodMetadataPrefixes", ["cost.example.org"], "should match"),
        ("allowedUriPrefixes", ["hf://org/name@main"], "should match"),
        ("allowedUriPrefixes", ["s3://b/../c"], "should match"),
        ("allowedUriPrefixes", ["file:///mnt/"], "should match"),
    ],
)
def test_the_runtimes_owner_cannot_allow_by_accident(admin: Kubectl, field: str, value: list[str], words: str) -> None:
    """The error names the field."""
    with pytest.raises(KubectlError) as refused:
        admin.create(a_runtime("odd", **{field: value}), dry_run=True)
    assert f"spec.{field}" in str(refused.value)
    assert words in str(refused.value)
