"""Which URIs the runtime allows, and that a pod refuses the others whatever wrote its configuration."""

from __future__ import annotations

import json
import os
import posixpath
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.uri_prefixes import find_uri_fault, resolve_prefixes
from prepare.makers import RUN
from trainer.tiny import PYTHON_PATH

pytestmark = pytest.mark.unit

ALLOWED = [
    ("s3://b/team", "s3://b/team"),
    ("s3://b/team", "s3://b/team/"),
    ("s3://b/team", "s3://b/team/x/y"),
    ("s3://b/team/", "s3://b/team"),
    ("s3://b/team/", "s3://b/team/x"),
    ("s3://b", "s3://b/x"),
    ("s3://", "s3://any/x"),
    ("hf://", "hf://org/name"),
    ("hf://org/", "hf://org/name@v1"),
    ("hf://org", "hf://org/name@refs/pr/1"),
    ("hf://org/name", "hf://org/name"),
    ("hf://org/name", "hf://org/name@refs/pr/1"),
    ("hf://datasets/org/", "hf://datasets/org/name@refs%2Fpr%2F1/a.jsonl"),
    ("hf://datasets/org/name", "hf://datasets/org/name@v1/a..b.jsonl"),
    ("file:///mnt/finetune/", "file:///mnt/finetune/storage/cache"),
]
REFUSED = [
    ("s3://b/team", "s3://b/team2"),
    ("s3://b/team", "s3://b/tea"),
    ("s3://b/team/", "s3://b/team2/x"),
    ("s3://b", "s3://b2/x"),
    ("s3://b", "s3://b@evil/x"),
    ("s3://b", "s3://b:80/x"),
    ("s3://b", "s3://b.evil/x"),
    ("s3://b/team", "s3://B/team"),
    ("s3://b/team/", "s3://b/team/../other"),
    ("s3://b/team/", "s3://b/team/%2e%2e/other"),
    ("s3://b/team/", "s3://b/team/..%2Fother"),
    ("s3://b/team/", "s3://b/team/%2e./other"),
    ("s3://b/team/", "s3://b/team/%252e%252e/other"),
    ("s3://b/team/", "s3://b/team/..\\other"),
    ("s3://b/team/", "s3://b/team/.\t./other"),
    ("s3://b/team/", "s3://b/team/x?endpoint=http://evil"),
    ("s3://b/team/", "s3://b/team/x#y"),
    ("s3://b/team/", "S3://b/team/x"),
    ("hf://org", "hf://org2/name"),
    ("hf://org/", "hf://datasets/org/name/a.jsonl"),
    ("hf://org/name", "hf://org/name2"),
    ("hf://org/name", "hf://org%2Fname"),
    ("hf://org/", "hf://org/name@../../evil/name"),
    ("hf://org/", "hf://org/name@%2e%2e"),
    ("hf://org/", "hf://org/name@..%2F..%2Fevil"),
    ("hf://org/", "file:///mnt/finetune/model"),
    ("file:///mnt/finetune/", "file:///mnt/finetune/../../etc"),
    ("file:///mnt/finetune/", "file:///mnt/finetune2"),
    ("file:///mnt/finetune/", "file://server/mnt/finetune/x"),
]


@pytest.mark.parametrize(("prefix", "uri"), ALLOWED)
def test_a_prefix_covers_whole_segments_below_it(prefix: str, uri: str) -> None:
    """A revision belongs to its repository."""
    assert find_uri_fault(uri, ["s3://other/", prefix]) is None


@pytest.mark.parametrize(("prefix", "uri"), REFUSED)
def test_nothing_beside_a_prefix_is_covered(prefix: str, uri: str) -> None:
    """Neither longer names nor anything that a reader could resolve to another place."""
    assert find_uri_fault(uri, [prefix]) is not None


def test_a_refusal_says_what_would_be_right() -> None:
    """Bounded: a condition's message is."""
    many = [f"s3://bucket-{number}/" for number in range(20)]
    assert find_uri_fault("hf://a/b", many[:2]) == "must begin with one of: s3://bucket-0/, s3://bucket-1/"
    assert str(find_uri_fault("hf://a/b", many)).endswith("s3://bucket-7/ and 12 more")
    assert "must not be a URI at all" in str(find_uri_fault("hf://a/b", []))
    assert "must not contain '..'" in str(find_uri_fault("hf://a/../b", ["hf://"]))


def test_the_namespace_is_the_jobs() -> None:
    """And one namespace's prefix does not cover the next one's."""
    resolved = resolve_prefixes(["s3://b/{namespace}", "s3://b-{namespace}/x/", "hf://org/"], "team-a")
    assert resolved == ["s3://b/team-a", "s3://b-team-a/x/", "hf://org/"]
    assert find_uri_fault("s3://b/team-a/x", resolved) is None
    assert find_uri_fault("s3://b/team-ab/x", resolved) is not None
    assert find_uri_fault("s3://b/{namespace}/x", resolved) is not None


paths = st.lists(st.sampled_from(["team", "x", "..", ".", "", "%2e", "%2f", "%2F", "\\", "@", "?", "#", " ", "2"]))


@given(paths, st.sampled_from(["/", ""]))
def test_what_is_allowed_stays_inside_however_it_is_read(parts: list[str], glue: str) -> None:
    """Decoded once or twice, with dots resolved or not, cut at a query or not."""
    uri = "s3://b/team" + glue + glue.join(parts)
    if find_uri_fault(uri, ["s3://b/team"]) is not None:
        return
    for read in (uri, unquote(uri), unquote(unquote(uri))):
        split = urlsplit(read)
        assert (split.scheme, split.netloc) == ("s3", "b")
        resolved = posixpath.normpath(split.path)
        assert resolved == "/team" or resolved.startswith("/team/")


# --- the pod ------------------------------------------------------------------------------------------------------

INSIDE = "s3://finetune/team/"
TRAIN: dict[str, Any] = {
    "job": {"namespace": "team", "name": "job"},
    "run": {"digest": RUN},
    "attempt": 1,
    "topology": {"nodes": 1, "processesPerNode": 1, "device": "cpu"},
    "model": {"uri": "file:///mnt/finetune/model", "sourceUri": "hf://acme/tiny", "digest": "b" * 64},
    "data": {
        "trainUri": "file:///mnt/finetune/storage/train.jsonl",
        "evalUri": "file:///mnt/finetune/storage/eval.jsonl",
        "trainRows": 4,
        "evalRows": 1,
        "digest": "c" * 64,
        "maxLength": 64,
    },
    "method": {"lora": {"r": 8, "loraAlpha": 16, "targetModules": ["q_proj"]}},
    "training": {
        "maxSteps": 1,
        "learningRate": 0.1,
        "globalBatchSize": 1,
        "perDeviceTrainBatchSize": 1,
        "gradientAccumulationSteps": 1,
    },
    "checkpoint": {"uri": f"{INSIDE}checkpoints"},
    "output": {"uri": f"{INSIDE}output"},
}
PREPARE: dict[str, Any] = {
    "job": {"namespace": "team", "name": "job"},
    "run": {"digest": RUN},
    "modelUri": "hf://acme/tiny",
    "datasetUri": "hf://datasets/acme/rows/a.jsonl",
    "evalUri": "hf://datasets/acme/rows/b.jsonl",
    "cacheUri": "file:///mnt/finetune/storage/cache",
    "outputUri": f"{INSIDE}output",
}
PREFIXES = ["hf://acme/", "hf://datasets/acme/", INSIDE, "file:///mnt/finetune/"]
OUTSIDE = "s3://finetune/team2/x"


def pod_refusal(folder: Path, command: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run the pod's process as the kubelet does; its last word, if it ended with 64."""
    (folder / "config.json").write_text(json.dumps(config))
    environment = os.environ | {
        "PYTHONPATH": PYTHON_PATH,
        "FINETUNE_CONFIG": str(folder / "config.json"),
        "FINETUNE_TERMINATION_LOG": str(folder / "log"),
    }
    command_line = [sys.executable, "-m", "finetune_trainer", command]
    done = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 64, done.stderr
    words: dict[str, Any] = json.loads((folder / "log").read_text())
    return words


@pytest.mark.parametrize(
    ("section", "key", "field"),
    [
        ("model", "sourceUri", "spec.model.uri"),
        ("model", "uri", "spec.model"),
        ("data", "trainUri", "spec.dataset"),
        ("data", "evalUri", "spec.dataset.eval"),
        ("checkpoint", "uri", "spec.checkpoint.uri"),
        ("output", "uri", "spec.output.uri"),
    ],
)
def test_a_train_pod_refuses_a_uri_outside(tmp_path: Path, section: str, key: str, field: str) -> None:
    """Exit code 64 before a worker starts, with the field, the URI and the prefixes."""
    config = TRAIN | {section: TRAIN[section] | {key: OUTSIDE}, "allowedUriPrefixes": PREFIXES}
    fault = pod_refusal(tmp_path, "launch", config)["fault"]
    assert (fault["field"], fault["value"]) == (field, OUTSIDE)
    assert f"must begin with one of: {', '.join(PREFIXES)}" in fault["message"]
    assert "allowedUriPrefixes" in fault["remedy"]


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("modelUri", "spec.model.uri"),
        ("datasetUri", "spec.dataset.uri"),
        ("evalUri", "spec.dataset.eval.uri"),
        ("cacheUri", "spec.checkpoint"),
        ("outputUri", "spec.output.uri"),
    ],
)
def test_a_prepare_pod_refuses_a_uri_outside(tmp_path: Path, key: str, field: str) -> None:
    """Before it asks the hub or the store for anything."""
    words = pod_refusal(tmp_path, "prepare", PREPARE | {key: OUTSIDE, "allowedUriPrefixes": PREFIXES})
    assert (words["fault"]["field"], words["fault"]["value"]) == (field, OUTSIDE)
    assert f"{OUTSIDE} must begin with one of" in words["message"]
