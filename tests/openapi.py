"""A small validator for structural schemas: what the API server would say about a status or a spec.

An instance that it refuses would be a 422 on every pass, for ever. CEL rules are not evaluated.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from finetune_operator.api.crd import crds

_DATE_TIME = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")


@functools.cache
def schema_of(plural: str) -> dict[str, Any]:
    """The schema in ``crds/``, from the generator, which is quicker than YAML."""
    crd = crds()[f"{plural}.finetune-operator.io.yaml"]
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def violations(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Everything that the API server would refuse, as ``path: why``; unknown fields, which it would prune, too."""
    kind = schema.get("type")
    if kind == "object" and isinstance(value, dict):
        yield from _object(schema, value, path)
    elif kind == "array" and isinstance(value, list):
        if len(value) > schema.get("maxItems", math.inf):
            yield f"{path}: {len(value)} items"
        for index, item in enumerate(value):
            yield from violations(schema["items"], item, f"{path}[{index}]")
    elif kind == "string" and isinstance(value, str):
        yield from _string(schema, value, path)
    elif kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            yield f"{path}: {value} is no int64"
        yield from _bounds(schema, value, path)
    elif kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            yield f"{path}: {value} is no JSON"
        yield from _bounds(schema, value, path)
    elif not (kind == "boolean" and isinstance(value, bool)) and "x-kubernetes-int-or-string" not in schema:
        yield f"{path}: {value!r} is no {kind}"


def _object(schema: dict[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
    if len(value) > schema.get("maxProperties", math.inf):
        yield f"{path}: {len(value)} properties"
    for name in schema.get("required", []):
        if name not in value:
            yield f"{path}.{name}: is required"
    extra = schema.get("additionalProperties")
    for name, item in value.items():
        child = schema.get("properties", {}).get(name, extra)
        if child is None:
            yield f"{path}.{name}: is unknown"
        else:
            yield from violations(child, item, f"{path}.{name}")


def _string(schema: dict[str, Any], value: str, path: str) -> Iterator[str]:
    try:
        value.encode()
    except UnicodeEncodeError:
        yield f"{path}: is no UTF-8"
    if len(value) > schema.get("maxLength", math.inf) or len(value) < schema.get("minLength", 0):
        yield f"{path}: {len(value)} characters"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if schema.get("format") == "date-time" and not _DATE_TIME.match(value):
        yield f"{path}: {value!r} is no RFC 3339 time"


def _bounds(schema: dict[str, Any], value: float, path: str) -> Iterator[str]:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if value < low or value > high:
        yield f"{path}: {value} is out of [{low}, {high}]"
    if (schema.get("exclusiveMinimum") and value == low) or (schema.get("exclusiveMaximum") and value == high):
        yield f"{path}: {value} is on an excluded bound"


def status_violations(status: dict[str, Any]) -> list[str]:
    """What the API server would say about a FineTuneJob's status."""
    json.dumps(status)
    return list(violations(schema_of("finetunejobs")["properties"]["status"], status, "status"))
