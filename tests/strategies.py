"""Hypothesis strategies: any spec that the CRD's schema lets through, with texts that somebody might try.

They are made from the schema, so a field that is added tomorrow is tried tomorrow. What CEL rules forbid on top, such
as two members of a union, is put right afterwards.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from finetune_operator.api.methods import METHODS
from openapi import schema_of

HOSTILE = (
    "../../etc", "/", "$(HOME)", "$(FINETUNE_OUTPUT_AWS_SECRET_ACCESS_KEY)", "hostPath", "privileged: true", "\n- a: b",
    '"}', "true", "null", "file:///etc", "system-node-critical", "cluster-admin", "kube-system",
)  # fmt: skip
KEYS = ("team", "cost.example.org/a", "sidecar.istio.io/inject", "iam.gke.io/x", "a", "istio.io/rev")
URIS = {
    "model": ("hf://org/name", "hf://org/name@main", "hf://org/name@$(HOME)"),
    "dataset": ("hf://datasets/org/name/a.jsonl", "hf://datasets/org/name/$(HOME)/..a"),
    "store": ("s3://finetune/a", "s3://finetune/team/x.y/"),
}
UNIONS = (("uri", "persistentVolumeClaim"), ("eval", "evalFraction"), ("numTrainEpochs", "maxSteps"))


def job_specs(*pools: str) -> st.SearchStrategy[dict[str, Any]]:
    """Specs of FineTuneJobs that run in ``pools``."""
    schema: dict[str, Any] = copy.deepcopy(schema_of("finetunejobs")["properties"]["spec"])
    schema["required"] = [*schema["required"], "method"]
    placement = schema["properties"]["placement"]["items"]["properties"]
    placement["pool"] = {"enum": list(pools)}
    return st.builds(_mended, _values(schema), st.randoms(use_true_random=False))


def _values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], min(schema["maximum"], schema["minimum"] + 3))
        case "number":
            return st.just(max(schema["minimum"], 0.5))
        case "string":
            return _texts(schema)
        case "array":
            return st.lists(_values(schema["items"]), min_size=schema.get("minItems", 0), max_size=2)
    if "additionalProperties" in schema:
        return st.dictionaries(st.sampled_from(KEYS), _values(schema["additionalProperties"]), max_size=3)
    fields = {name: _values(child) for name, child in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(required, optional=fields)


def _texts(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    low, high = schema.get("minLength", 0), min(schema["maxLength"], 60)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z")).filter(lambda text: low <= len(text) <= high)
    return st.sampled_from([text for text in HOSTILE if low <= len(text) <= high])


def _mended(spec: dict[str, Any], choice: Any) -> dict[str, Any]:
    """One member of each union, URIs of the right scheme, no path that leads up."""
    spec = copy.deepcopy(spec)
    method = choice.choice(METHODS)
    spec["method"] = {method: spec["method"].get(method, {})}
    # A location that is not there is mended to no effect.
    model, dataset, checkpoint, output = (spec.get(name, {}) for name in ("model", "dataset", "checkpoint", "output"))
    locations = [(model, "model"), (dataset, "dataset"), (dataset.get("eval", {}), "dataset"), (output, "store")]
    for place, kind in (*locations, (checkpoint, "store")):
        is_needed = place is not checkpoint and "persistentVolumeClaim" not in place
        if "uri" in place or is_needed:
            place["uri"] = choice.choice(URIS[kind])
        _keep_one(place, choice)
        if "uri" not in place:
            place.pop("secretRef", None)
        claim = place.get("persistentVolumeClaim", {})
        if ".." in claim.get("path", "").split("/"):
            claim["path"] = claim["path"].replace("..", "x")
    _keep_one(spec.get("training", {}), choice)
    return spec


def _keep_one(place: dict[str, Any], choice: Any) -> None:
    for union in UNIONS:
        if all(name in place for name in union):
            del place[choice.choice(union)]
