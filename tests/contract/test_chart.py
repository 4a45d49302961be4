"""The chart: what it renders works with the code, what it refuses is refused early, and every value is explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from finetune_operator import constants
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.runtime import FineTuneRuntimeSpec, Pool
from finetune_operator.config import OperatorConfig

pytestmark = pytest.mark.unit

CHART = Path(__file__).parents[2] / "charts/finetune-operator"
DIGEST = "sha256:" + "0" * 64


def one(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only manifest of a kind."""
    [found] = [item for item in manifests if item["kind"] == kind]
    return found


def operator_container(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    [container] = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in operator_container(manifests)["env"]}


# -- the operator's pod --------------------------------------------------------------------------------------


def test_one_operator_at_a_time(render: Any) -> None:
    """The operator takes no lease, so the old pod must be gone before the new one starts."""
    spec = one(render(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_pod_is_restricted(render: Any) -> None:
    """The `restricted` pod security level, and a read-only root file system on top."""
    pod = one(render(), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == constants.TRAINER_UID
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_defaults_of_the_chart_are_the_defaults_of_the_operator(render: Any) -> None:
    """A default that is changed in one place only would make the two documentations differ."""
    settings = OperatorConfig.from_env(environment(render()))
    runtime = Path("/etc/finetune-operator/runtime.yaml")
    # A pod's log is read by programs, an operator's in a terminal by people.
    assert settings == OperatorConfig(default_runtime=runtime, log_format="json")


def test_every_setting_arrives(render: Any) -> None:
    """Each value is read by the operator under the name the chart gives it."""
    values = {
        "namespaces": ["team-a", "team-b"],
        "workers": 3,
        "resyncSeconds": 60,
        "progressSeconds": 5,
        "logLevel": "DEBUG",
        "logFormat": "text",
        "defaultRuntime": {"create": False},
    }
    assert OperatorConfig.from_env(environment(render(values))) == OperatorConfig(
        namespaces=("team-a", "team-b"), workers=3, resync_seconds=60, progress_seconds=5, log_level="DEBUG"
    )


def test_a_digest_wins_over_the_tag(render: Any) -> None:
    """With neither, the chart's appVersion is the tag."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    image = {"repository": "registry.example.org/operator"}
    assert operator_container(render({"image": image}))["image"] == f"registry.example.org/operator:{version}"
    manifests = render({"image": {**image, "tag": "dev", "digest": DIGEST}})
    assert operator_container(manifests)["image"] == f"registry.example.org/operator@{DIGEST}"


def test_metrics_are_found_with_and_without_the_prometheus_operator(render: Any) -> None:
    """The Service leads to the operator's port; annotations and a ServiceMonitor exclude each other."""
    ports = {port["name"]: port["containerPort"] for port in operator_container(render())["ports"]}
    assert ports == {"health": OperatorConfig.probe_port, "metrics": OperatorConfig.metrics_port}
    service = one(render(), "Service")
    annotations = service["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["metrics"]
    pod = one(render(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pod.items()
    assert "ServiceMonitor" not in {item["kind"] for item in render()}

    monitored = render({"metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "mine"}}}})
    monitor, service = one(monitored, "ServiceMonitor"), one(monitored, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "mine"
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == ["metrics"]
    assert "annotations" not in service["metadata"]
    assert "Service" not in {item["kind"] for item in render({"metrics": {"service": {"enabled": False}}})}


def test_a_service_monitor_without_its_service_is_refused(helm: Any) -> None:
    """It would select nothing."""
    metrics = {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}
    done = helm("template", "ftop", str(CHART), values={"metrics": metrics})
    assert done.returncode != 0
    assert "needs metrics.service.enabled" in done.stderr


# -- CRDs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False], ids=["keep", "remove"])
def test_the_rendered_crds_are_the_generated_ones(render: Any, keep: bool) -> None:
    """Only labels, and the annotation that survives `helm uninstall`, are added."""
    rendered = {
        item["metadata"]["name"]: item
        for item in render({"crds": {"keep": keep}})
        if item["kind"] == "CustomResourceDefinition"
    }
    for path in (CHART / "files/crds").iterdir():
        source = yaml.safe_load(path.read_text(encoding="utf-8"))
        crd = rendered.pop(source["metadata"]["name"])
        assert crd["metadata"].get("annotations") == ({"helm.sh/resource-policy": "keep"} if keep else None)
        assert crd["spec"] == source["spec"]
    assert not rendered


def test_crds_can_be_left_out(render: Any) -> None:
    """For clusters whose administrators apply `crds/` themselves."""
    assert "CustomResourceDefinition" not in {item["kind"] for item in render({"crds": {"enabled": False}})}


# -- the default runtime -------------------------------------------------------------------------------------


def default_runtime(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(yaml.safe_load(one(manifests, "ConfigMap")["data"]["runtime.yaml"]))


def test_the_default_runtime_is_valid_and_complete(render: Any) -> None:
    """It parses as the operator parses it, and the model drops nothing of it."""
    runtime = default_runtime(render())
    assert (runtime["apiVersion"], runtime["kind"]) == (constants.API_VERSION, constants.RUNTIME_KIND)
    assert runtime["metadata"]["name"] == FineTuneJobSpec.model_fields["runtime_ref"].default.name
    parsed = FineTuneRuntimeSpec.model_validate(runtime["spec"])
    assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == runtime["spec"]


def test_the_default_runtime_can_be_replaced_in_full(render: Any) -> None:
    """A list replaces the default's, null removes a part of it, an image in the spec wins."""
    spec = {"image": "registry.example.org/mine:1", "pools": [{"name": "cpu", "device": "cpu"}], "storage": None}
    rendered = default_runtime(render({"defaultRuntime": {"name": "small", "spec": spec}}))
    assert rendered["metadata"]["name"] == "small"
    assert rendered["spec"] == {"image": "registry.example.org/mine:1", "pools": [{"name": "cpu", "device": "cpu"}]}


def test_a_changed_default_runtime_starts_the_operator_again(render: Any) -> None:
    """The operator reads the file at start only."""

    def annotations(values: dict[str, Any]) -> Any:
        return one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations({}) != annotations({"defaultRuntime": {"name": "other"}})


def test_without_a_default_runtime_nothing_of_it_is_left(render: Any) -> None:
    """No ConfigMap, no mount."""
    manifests = render({"defaultRuntime": {"create": False}})
    assert "ConfigMap" not in {item["kind"] for item in manifests}
    assert [mount["name"] for mount in operator_container(manifests)["volumeMounts"]] == ["tmp"]


# -- the schema of the values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "place"),
    [
        pytest.param({"replicas": 2}, "replicas", id="unknown value"),
        pytest.param({"image": {"tga": "1"}}, "/image", id="misspelt value"),
        pytest.param({"workers": 0}, "/workers", id="out of bounds"),
        pytest.param({"logLevel": "debug"}, "/logLevel", id="not one of the choices"),
        pytest.param({"metrics": {"port": 1}}, "/metrics", id="the port of the metrics is fixed"),
        pytest.param({"image": {"digest": "sha256:12"}}, "/image/digest", id="not a digest"),
        pytest.param({"namespaces": "team-a"}, "/namespaces", id="not a list"),
        pytest.param({"defaultRuntime": {"spec": {"pool": []}}}, "/defaultRuntime/spec", id="misspelt runtime field"),
        pytest.param(
            {"defaultRuntime": {"spec": {"pools": [{"name": "a", "gpus": 8}]}}}, "/pools/0", id="misspelt pool field"
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Any, values: dict[str, Any], place: str) -> None:
    """Before anything reaches the cluster."""
    done = helm("template", "ftop", str(CHART), values=values)
    assert done.returncode != 0
    assert place in done.stderr


def test_the_schema_knows_every_field_of_a_runtime() -> None:
    """A field that is added to the models must be allowed in `defaultRuntime.spec`."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    spec = schema["properties"]["defaultRuntime"]["properties"]["spec"]
    assert set(spec["properties"]) == fields(FineTuneRuntimeSpec)
    assert set(spec["properties"]["pools"]["items"]["properties"]) == fields(Pool)


def fields(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


# -- documentation -------------------------------------------------------------------------------------------


def documented_values() -> dict[str, str]:
    """Path -> what the `# --` comment above it says, up to the first line that is not a comment."""
    found: dict[str, str] = {}
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if match := re.match(r"#( --)? ?(.*)", text):
            comment = [match[2]] if match[1] else [*comment, match[2]] if comment else []
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if comment:
                found[".".join(path)] = " ".join(comment)
            comment = []
    return found


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of all values; a documented map counts as one value."""
    documented = documented_values()
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in documented:
            yield from leaves(value, f"{path}.")
        else:
            yield path


def test_every_value_has_a_comment() -> None:
    """And no comment stands above something that is no value."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(leaves(values)) == set(documented_values())


def test_the_readme_lists_every_value_in_the_words_of_its_comment() -> None:
    """One source: the comments."""
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Za-z.]+)` \| .* \| (.*) \|$", readme, re.MULTILINE))
    assert rows == documented_values()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"namespaces": ["team-a"], "defaultRuntime": {"name": "small"}},
        {"defaultRuntime": {"spec": {"storage": None}}},
        {"defaultRuntime": {"create": False}, "crds": {"keep": False}, "rbac": {"create": False}},
    ],
    ids=["default", "one namespace", "no storage", "bare"],
)
def test_the_first_job_in_the_notes_is_valid(helm: Any, values: dict[str, Any]) -> None:
    """Users paste it."""
    done = helm("install", "ftop", str(CHART), "--dry-run=client", values=values)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:", 1)[1]
    claim, job = (yaml.safe_load(text) for text in re.findall(r"<<EOF\n(.*?)^EOF$", notes, re.MULTILINE | re.DOTALL))
    assert claim["kind"] == "PersistentVolumeClaim"
    parsed = FineTuneJobSpec.model_validate(job["spec"])
    assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == job["spec"]


def test_helm_lint_finds_nothing(helm: Any) -> None:
    """Warnings count."""
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
