"""The Job of the CPU stage and its configuration."""

from __future__ import annotations

from typing import Any

from finetune_operator import constants
from finetune_operator.builders.credentials import credentials
from finetune_operator.builders.locations import (
    Mounts,
    allowed_uri_prefixes,
    cache_uri,
    mounts_of,
    outputs_uri,
    source_uri,
)
from finetune_operator.builders.metadata import Owner, child_labels, child_metadata, config_map
from finetune_operator.builders.names import config_name, prepare_name
from finetune_operator.builders.pod import pod_template
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer import layout
from finetune_trainer.config import JobIdentity, PrepareConfig, RunIdentity
from finetune_trainer.exit_codes import ExitCode

RETRIES = 6
"""Failures that are nobody's fault, e.g. a Hub that does not answer; Kubernetes spaces them out over ten minutes."""


def build_prepare(owner: Owner, snapshot: Snapshot) -> list[dict[str, Any]]:
    """ConfigMap and Job."""
    mounts = mounts_of(snapshot)
    name = prepare_name(owner.name)
    config = prepare_config(owner, snapshot, mounts).to_json()
    config_map_name = config_name(name, config)
    labels = child_labels(owner, stage=constants.STAGE_PREPARE, run=snapshot.digest)
    memory = snapshot.runtime.prepare_memory
    template = pod_template(
        snapshot,
        mounts,
        labels=labels,
        command=["python", "-m", "finetune_trainer", "prepare"],
        config_map=config_map_name,
        resources={"requests": {"cpu": "250m", "memory": memory}, "limits": {"memory": memory}},
        credentials=credentials(snapshot, "output"),  # it looks whether there is a result already
    )
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(owner, name, labels),
        "spec": {
            "backoffLimit": RETRIES,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": constants.TRAINER_CONTAINER,
                            "operator": "In",
                            "values": [int(ExitCode.CONFIG), int(ExitCode.DATA)],
                        },
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": template,
        },
    }
    return [config_map(owner, config_map_name, labels, {"config.json": config}), job]


def prepare_config(owner: Owner, snapshot: Snapshot, mounts: Mounts) -> PrepareConfig:
    """What the pod reads."""
    spec = snapshot.spec
    held_out = spec.dataset.eval
    return PrepareConfig(
        job=JobIdentity(namespace=owner.namespace, name=owner.name, uid=owner.uid),
        run=RunIdentity(id=spec.run_id, digest=snapshot.digest),
        model_uri=source_uri(mounts, "model", spec.model),
        dataset_uri=source_uri(mounts, "dataset", spec.dataset),
        eval_uri=source_uri(mounts, "eval", held_out) if held_out else None,
        eval_fraction=spec.dataset.eval_fraction or 0.0,
        seed=spec.training.seed,
        max_length=spec.dataset.max_length,
        max_steps=spec.training.max_steps,
        packing=spec.dataset.packing,
        cache_uri=cache_uri(mounts),
        output_uri=layout.output_uri(outputs_uri(snapshot, mounts), owner.namespace, owner.name),
        allowed_uri_prefixes=allowed_uri_prefixes(snapshot, owner.namespace),
    )
