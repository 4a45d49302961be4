"""Writes ``crds/*.yaml`` from the models: ``python -m finetune_operator.api.crd crds charts/…/crds``.

pydantic's JSON schema uses references, null types and numeric exclusive bounds; Kubernetes wants a structural
schema: everything in place, one type per node, boolean exclusive bounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from finetune_operator import constants
from finetune_operator.api.base import ApiModel
from finetune_operator.api.job import NAME_PATTERN, FineTuneJob
from finetune_operator.api.runtime import FineTuneRuntime

JOB_COLUMNS = (
    ("Status", "string", ".status.phase", 0),
    ("Model", "string", ".status.plan.model", 0),
    ("Method", "string", ".status.plan.method", 0),
    ("Nodes", "integer", ".status.plan.nodes", 0),
    ("Progress", "integer", ".status.progress.progressPercentage", 0),
    ("Step", "string", ".status.progress.steps", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("Attempts", "integer", ".status.totals.attempts", 0),
    ("ETA", "integer", ".status.progress.estimatedRemainingSeconds", 1),
    ("Checkpoint", "integer", ".status.checkpoint.step", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
RUNTIME_COLUMNS = (
    ("Image", "string", ".spec.image", 0),
    ("Pools", "string", ".spec.pools[*].name", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)

_DROPPED = {"title", "examples", "$defs", "const"}


def structural(model: type[ApiModel]) -> dict[str, Any]:
    """The structural OpenAPI v3 schema of a model."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(raw, raw.get("$defs", {}))


def _convert(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    node = _without_null(_dereferenced(node, defs), defs)
    if node.get("x-kubernetes-int-or-string"):
        # The pattern holds for the text form, as in every CRD with quantities; a number is one by itself.
        kept = ("description", "default", "pattern", "maxLength", "x-kubernetes-int-or-string")
        return {key: node[key] for key in kept if key in node}
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key in _DROPPED or (key == "default" and not _is_plain_default(value)):
            continue
        if key == "properties":
            result[key] = {name: _convert(child, defs) for name, child in value.items()}
        elif key in ("items", "additionalProperties"):
            if isinstance(value, dict):
                result[key] = _convert(value, defs)
        elif key == "propertyNames":
            continue
        elif key == "exclusiveMinimum":
            result |= {"minimum": value, "exclusiveMinimum": True}
        elif key == "exclusiveMaximum":
            result |= {"maximum": value, "exclusiveMaximum": True}
        else:
            result[key] = value
    if result.get("type") == "integer":
        result["format"] = "int64"
    return result


def _is_plain_default(value: object) -> bool:
    """Scalars and one-level maps are defaulted by the API server; larger ones only by the models."""
    if isinstance(value, dict):
        return (
            bool(value)
            and all(isinstance(item, str | int | float | bool) for item in value.values())
            and len(value) == 1
        )
    return isinstance(value, str | int | float | bool) and value != ""


def _dereferenced(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Inline ``$ref``; what stands beside the reference (the field's description) wins over the class's own."""
    if "$ref" not in node:
        return node
    target = defs[node["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _without_null(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """``anyOf: [X, null]`` becomes X: in Kubernetes an optional field is simply absent."""
    variants = [item for item in node.get("anyOf", []) if item.get("type") != "null"]
    if "anyOf" not in node:
        return node
    if len(variants) != 1:
        raise ValueError(f"a structural schema has one type per field, got {node['anyOf']}")
    outer = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
    return {**_dereferenced(variants[0], defs), **outer}


def _crd(
    model: type[ApiModel],
    *,
    kind: str,
    plural: str,
    scope: str,
    short: str,
    columns: tuple[Any, ...],
    name_pattern: str = "",
) -> dict[str, Any]:
    schema = structural(model)
    has_status = "status" in schema["properties"]
    for name in ("apiVersion", "kind"):
        schema["properties"][name] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    if name_pattern:
        schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "pattern": name_pattern}}
    if has_status:
        # kstatus takes a resource without conditions and generation for done: close that gap (Flux does the same).
        schema["properties"]["status"]["default"] = {"observedGeneration": -1}
    version: dict[str, Any] = {
        "name": constants.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path, "priority": priority}
            for name, type_, path, priority in columns
        ],
        "schema": {"openAPIV3Schema": schema},
    }
    if has_status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{constants.GROUP}"},
        "spec": {
            "group": constants.GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["ml"],
            },
            "versions": [version],
        },
    }


def crds() -> dict[str, dict[str, Any]]:
    """File name -> CustomResourceDefinition."""
    job = _crd(
        FineTuneJob,
        kind=constants.JOB_KIND,
        plural=constants.JOB_PLURAL,
        scope="Namespaced",
        short="ftj",
        columns=JOB_COLUMNS,
        name_pattern=NAME_PATTERN,
    )
    runtime = _crd(
        FineTuneRuntime,
        kind=constants.RUNTIME_KIND,
        plural=constants.RUNTIME_PLURAL,
        scope="Cluster",
        short="ftr",
        columns=RUNTIME_COLUMNS,
    )
    return {f"{item['metadata']['name']}.yaml": item for item in (job, runtime)}


def render(crd: dict[str, Any]) -> str:
    """The YAML text as it is committed."""
    head = "# Generated from operator/finetune_operator/api by `make generate`; do not edit.\n"
    return head + str(yaml.dump(crd, Dumper=_PlainDumper, sort_keys=False, width=120, allow_unicode=True))


class _PlainDumper(yaml.SafeDumper):
    """Writes what is shared twice instead of as an anchor: people and simple tools read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main(folders: list[str]) -> None:
    """Write all CRDs into each folder."""
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, crd in crds().items():
            (Path(folder) / name).write_text(render(crd), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
