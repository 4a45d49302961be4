"""Hypothesis strategies: what may happen to a job, and any spec that the CRD's schema lets through.

Specs are made from the schema, with texts that somebody might try, so a field that is added tomorrow is tried tomorrow.
What CEL rules forbid on top, such as two members of a union, is put right afterwards.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from hypothesis import strategies as st

from finetune_operator.api.methods import METHODS
from openapi import schema_of

# --- what may happen to a job (machine.py) ------------------------------------------------------------------------

WHICH = st.integers(0, 7)
"""One of those that are there."""
NODES = st.lists(st.integers(1, 3), min_size=1, max_size=2)
"""Of each placement."""


class Then(NamedTuple):
    """What follows an event."""

    seconds: int = 0
    """They pass; grace periods and delays end in them, or not."""
    calls: int | None = None
    """The operator dies after so many calls of a pass: sweep, three children, status, deletion."""
    rounds: int = 0
    """In which everybody does what is theirs to do."""


THEN = st.builds(
    Then,
    seconds=st.sampled_from([0, 1, 20, 60, 400]),
    calls=st.none() | st.none() | st.integers(0, 5),
    rounds=st.integers(0, 3),
)
STEPS = st.sampled_from([-20, 0, 1, 20, 20])
"""An old line of the log is read again; the gang is done; it trains on."""
CODES = st.sampled_from([1, 1, 1, 64, 65, 69, 75, 76, 77, 78, 79, 137, 143])
TIMES = st.sampled_from([1, 4])
"""Some pods fail whenever they are back."""
WORDS = st.sampled_from(["none", "few", "many", "many"])
WAYS_TO_GO = st.sampled_from(
    ["OOMKilled", "vanishes", "deleted", "EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager"]
)
SOMEBODY = st.sampled_from(["operator", "watch", "controllers", "scheduler"])
MEDDLING = st.sampled_from(["job", "job", "label", "snapshot", "runtime"])
EDITS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"suspend": True},
        {"suspend": True},
        {"suspend": False},
        {"runId": "2"},
        {"runId": ""},
        {"training": {"seed": 1}},
        {"training": {"seed": 2}, "onChange": "Restart"},
        {"onChange": "Ignore"},
        {"backoffLimit": 3},
        {"ttlSecondsAfterFinished": 300},
    ]
)
"""Of fields that act at once and of others, also back and forth."""
MEANWHILE = st.sampled_from(["operator", "controllers", "scheduler", "vanishes", "job", "snapshot"]) | EDITS
"""What the operator has not seen yet when it acts."""

# --- specs --------------------------------------------------------------------------------------------------------

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
