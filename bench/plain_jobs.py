"""Jobs without an operator: the floor that ``control_plane.py`` compares with."""

from __future__ import annotations

import json

from e2e.kubectl import Json
from finetune_operator import constants

_PLAIN_PREFIX = "plain.test/"
"""Of labels, instead of the operator's."""


def numbered(job: Json, number: int) -> Json:
    """One of many: the number is in its name, and in place of the uid that keeps the pods of a gang apart."""
    text = json.dumps(job)
    uid = job["spec"]["template"].get("metadata", {}).get("labels", {}).get(_plain(constants.JOB_UID_LABEL))
    result: Json = json.loads(text.replace(uid, f"job-{number}") if uid else text)
    result["metadata"]["name"] += f"-{number}"
    return result


def without_owner(job: Json) -> Json:
    """The same Job with labels that the operator does not look for."""
    template: Json = json.loads(_plain(json.dumps(job["spec"]["template"])))
    labels: Json = template["metadata"]["labels"]
    # The others are the API server's own, which adds them anew.
    template["metadata"]["labels"] = {key: value for key, value in labels.items() if key.startswith(_PLAIN_PREFIX)}
    kept = ("completions", "parallelism", "completionMode", "backoffLimitPerIndex", "backoffLimit", "podFailurePolicy")
    spec = {key: value for key, value in job["spec"].items() if key in kept} | {"template": template}
    name = labels[_plain(constants.STAGE_LABEL)]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def _plain(text: str) -> str:
    return text.replace(f"{constants.GROUP}/", _PLAIN_PREFIX)


def plain_job(name: str, pods: int) -> Json:
    """The smallest Job whose pods ask for a GPU each."""
    container = {
        "name": "trainer",
        "image": "plain",
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi", "nvidia.com/gpu": "1"},
            "limits": {"nvidia.com/gpu": "1"},
        },
    }
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {
        "completions": pods,
        "parallelism": pods,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": 0,
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
