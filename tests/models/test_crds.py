"""The CRDs: fresh, structural, bounded and documented, because ``kubectl explain`` and the API server know no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.crd import crds, render

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
CRDS = {name.partition(".")[0]: yaml.safe_load((ROOT / "crds" / name).read_text(encoding="utf-8")) for name in crds()}
BOTH = pytest.mark.parametrize("plural", sorted(CRDS))

NO_UNIT = re.compile(
    r"(\.r|loraAlpha|loraDropout|seed|learningRate|weightDecay|maxGradNorm|evalFraction|exitCode|[rR]ank|number|[Ll]oss"
    r"|epoch|observedGeneration|nodes|gpusPerNode|parameters|keep|byCause\{}|metrics\{}|attempts|failures"
    r"|gradientAccumulationSteps|candidate|rounds|boundPods|replans|firstAttempt)$"
)
"""Numbers that are counts of what they are named after, or have no dimension."""

WITHOUT_MAX_LENGTH = {
    "date-time": "the format bounds it",
    "enum": "the values bound it",
}


def _schema(plural: str) -> dict[str, Any]:
    schema: dict[str, Any] = CRDS[plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _walk(child, f"{path}.{name}".lstrip("."))
    if isinstance(node.get("items"), dict):
        yield from _walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from _walk(node["additionalProperties"], f"{path}{{}}")


def _fields(plural: str) -> list[tuple[str, dict[str, Any]]]:
    """All nodes of spec and status below the top."""
    return [(path, node) for path, node in _walk(_schema(plural)) if path.startswith(("spec.", "status."))]


@pytest.mark.parametrize("name", sorted(crds()))
def test_committed_files_are_what_the_generator_writes(name: str) -> None:
    """``make generate`` was run after the last change of a model."""
    assert (ROOT / "crds" / name).read_text(encoding="utf-8") == render(crds()[name])


@BOTH
def test_files_have_no_anchors(plural: str) -> None:
    """YAML aliases are legal, but people and simple tools read these files."""
    text = (ROOT / "crds" / f"{plural}.finetune-operator.io.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(: |- )[&*]id\d+", text)


@BOTH
def test_fields_are_documented_with_default_and_example(plural: str) -> None:
    """Each description says what it is, what is taken when it is omitted, and shows a value."""
    wrong = [
        path
        for path, node in _fields(plural)
        if not path.endswith(("[]", "{}"))
        and not (
            re.search(r"(Default: .+|Required)\.", node.get("description", ""))
            and re.search(r"Example: .+\.$", node["description"])
        )
    ]
    assert wrong == []


@BOTH
def test_numbers_have_a_unit_unless_they_have_no_dimension(plural: str) -> None:
    """Seconds are not guessed."""
    wrong = [
        path
        for path, node in _fields(plural)
        if node.get("type") in ("integer", "number")
        and "Unit: " not in node.get("description", "")
        and not NO_UNIT.search(path)
    ]
    assert wrong == []


@BOTH
def test_strings_lists_and_maps_are_bounded(plural: str) -> None:
    """CEL is costed at the maximum sizes, and a status must not grow without end."""
    wrong = []
    for path, node in _fields(plural):
        kind = node.get("type")
        excused = node.get("format") in WITHOUT_MAX_LENGTH or "enum" in node
        if kind == "string" and "maxLength" not in node and not excused:
            wrong.append(path)
        if kind == "array" and "maxItems" not in node:
            wrong.append(path)
        if "additionalProperties" in node and "maxProperties" not in node:
            wrong.append(path)
    assert wrong == []


@BOTH
def test_spec_integers_are_bounded_on_both_sides(plural: str) -> None:
    """A typo such as 1000000 nodes is refused by the API server."""
    wrong = [
        path
        for path, node in _fields(plural)
        if path.startswith("spec.")
        and node.get("type") in ("integer", "number")
        and not {"minimum", "maximum"} <= set(node)
    ]
    assert wrong == []


@BOTH
def test_schema_is_structural(plural: str) -> None:
    """One type per node, everything in place, nothing that the API server drops or refuses."""
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "const", "title", "examples", "nullable"}
    for path, node in _walk(_schema(plural)):
        assert not forbidden & set(node), path
        assert isinstance(node.get("type"), str) or node.get("x-kubernetes-int-or-string"), path
        assert node.get("type") != "null", path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert node.get("default", 0) is not None, path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert isinstance(node.get(bound, True), bool), path


@BOTH
def test_required_fields_have_no_default(plural: str) -> None:
    """A default on a required field would never be taken."""
    for path, node in _walk(_schema(plural)):
        for name in node.get("required", []):
            assert "default" not in node["properties"][name], f"{path}.{name}"


@BOTH
def test_crd_stays_small(plural: str) -> None:
    """Below the 262144 bytes of kubectl's last-applied annotation by far."""
    assert len(json.dumps(CRDS[plural])) < 100_000


@BOTH
def test_rules_say_what_must_be(plural: str) -> None:
    """Each CEL rule carries a message for people."""
    messages = [
        rule["message"] for _, node in _walk(_schema(plural)) for rule in node.get("x-kubernetes-validations", [])
    ]
    assert all("must" in message for message in messages)


def test_new_job_is_not_current_before_the_first_look() -> None:
    """kstatus takes an object without generation and conditions for done; the default closes the gap."""
    assert _schema("finetunejobs")["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_job_columns_show_what_matters() -> None:
    """``kubectl get ftj``, and with ``-o wide`` two more."""
    version = CRDS["finetunejobs"]["spec"]["versions"][0]
    columns = version["additionalPrinterColumns"]
    narrow = [column["name"] for column in columns if not column["priority"]]
    wide = [column["name"] for column in columns if column["priority"]]
    assert narrow == ["Status", "Model", "Method", "Nodes", "Progress", "Step", "Loss", "Attempts", "Age"]
    assert wide == ["ETA", "Checkpoint"]


def test_job_columns_point_at_fields_of_their_type() -> None:
    """A column whose path leads nowhere stays empty without a word."""
    version = CRDS["finetunejobs"]["spec"]["versions"][0]
    nodes = dict(_walk(_schema("finetunejobs")))
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].lstrip(".")
        if not path.startswith("metadata."):
            assert nodes[path]["type"] == column["type"], column["name"]


@pytest.mark.parametrize(
    ("plural", "short", "scope"),
    [("finetunejobs", "ftj", "Namespaced"), ("finetuneruntimes", "ftr", "Cluster")],
    ids=["job", "runtime"],
)
def test_names_are_short_and_in_the_ml_category(plural: str, short: str, scope: str) -> None:
    """``kubectl get ftj``, ``kubectl get ml``."""
    spec = CRDS[plural]["spec"]
    assert spec["names"]["shortNames"] == [short]
    assert spec["names"]["categories"] == ["ml"]
    assert spec["scope"] == scope
    assert spec["versions"][0]["name"] == "v1alpha1"


def test_status_is_a_subresource() -> None:
    """So that a write of the status never touches the spec, and the generation counts edits of the spec only."""
    assert CRDS["finetunejobs"]["spec"]["versions"][0]["subresources"] == {"status": {}}
