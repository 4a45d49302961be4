"""The pod template of both stages: restricted security profile, read-only root, writable places named."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from finetune_operator import constants
from finetune_operator.api.runtime import Pool
from finetune_operator.builders.locations import Mounts
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer.config import CONFIG_PATH

GRACE_SECONDS = 30
"""SIGTERM to SIGKILL: twice the 15 s in which the trainer promises to save and end."""

LOST_NODE_TOLERATION_SECONDS = 30
"""How long a pod stays on a node that does not answer. Kubernetes' default of 300 s would hold the run for as long."""

_HOME = "/home/finetune"
_SCRATCH_LIMIT = "10Gi"


def pod_template(
    snapshot: Snapshot,
    mounts: Mounts,
    *,
    labels: dict[str, str],
    command: list[str],
    config_map: str,
    resources: dict[str, Any],
    credentials: list[dict[str, Any]],
    env: dict[str, str] | None = None,
    shm_size: str | None = None,
) -> dict[str, Any]:
    """A template without placement; ``place`` adds that.

    Of the job it takes names of claims and Secrets, and what its runtime's owner allowed: priority and metadata.
    """
    spec, runtime = snapshot.spec, snapshot.runtime
    scratch = [("tmp", "/tmp"), ("home", _HOME)]
    environment = {
        "HOME": _HOME,
        "TMPDIR": "/tmp",
        "HF_HOME": f"{_HOME}/huggingface",
        "PYTHONUNBUFFERED": "1",
    }
    environment |= {item.name: item.value for item in runtime.env}
    environment |= env or {}
    by_name = {name: {"name": name, "value": value} for name, value in environment.items()}
    by_name |= {item["name"]: item for item in credentials}
    volumes: list[dict[str, Any]] = [{"name": "config", "configMap": {"name": config_map}}]
    volumes += [{"name": name, "emptyDir": {"sizeLimit": _SCRATCH_LIMIT}} for name, _ in scratch]
    volume_mounts: list[dict[str, Any]] = [{"name": "config", "mountPath": str(CONFIG_PATH.parent), "readOnly": True}]
    volume_mounts += [{"name": name, "mountPath": path} for name, path in scratch]
    if shm_size is not None:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm_size}})
        volume_mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": runtime.service_account_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{taint}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": LOST_NODE_TOLERATION_SECONDS,
            }
            for taint in ("not-ready", "unreachable")
        ],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": constants.TRAINER_UID,
            "runAsGroup": constants.TRAINER_UID,
            "fsGroup": constants.TRAINER_UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": constants.TRAINER_CONTAINER,
                "image": runtime.image,
                "imagePullPolicy": runtime.image_pull_policy,
                "command": command,
                "env": list(by_name.values()),
                "resources": resources,
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": volume_mounts + mounts.volume_mounts(),
            }
        ],
        "volumes": volumes + mounts.volumes(),
    }
    if runtime.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in runtime.image_pull_secrets]
    if spec.priority_class_name:
        pod["priorityClassName"] = spec.priority_class_name
    metadata: dict[str, Any] = {"labels": spec.pod_metadata.labels | labels}  # ours win, whatever was let through
    if spec.pod_metadata.annotations:
        metadata["annotations"] = dict(spec.pod_metadata.annotations)
    return {"metadata": metadata, "spec": pod}


def place(template: dict[str, Any], pool: Pool, *, apart: dict[str, str], avoided_nodes: Sequence[str] = ()) -> None:
    """Bind a template to a pool: its nodes, its taints, and one pod of ``apart``'s labels per host.

    ``avoided_nodes`` are kept away from where others are free.
    """
    spec = template["spec"]
    if pool.node_selector:
        spec["nodeSelector"] = dict(pool.node_selector)
    spec["tolerations"] = [item.to_dict() for item in pool.tolerations] + spec["tolerations"]
    spec["affinity"] = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": apart}}
            ]
        }
    }
    if avoided_nodes:
        # A field selector takes one value each; those of one term must all hold.
        away = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in avoided_nodes]
        spec["affinity"]["nodeAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchFields": away}}]
        }


def train_resources(pool: Pool, processes: int) -> dict[str, Any]:
    """Requests and limits of a training pod with ``processes`` ranks."""
    resource = pool.resource_name or ("nvidia.com/gpu" if pool.device == "cuda" else None)
    memory = multiply_quantity(pool.memory_per_gpu, processes)
    requests = {"cpu": multiply_quantity(pool.cpu_per_gpu, processes), "memory": memory}
    limits = {"memory": memory}
    if resource is not None:
        requests[resource] = limits[resource] = str(processes)
    return {"requests": requests, "limits": limits}


def multiply_quantity(quantity: str, factor: int) -> str:
    """``32Gi`` x 8 = ``256Gi``; the pattern of the field allows digits, a fraction and one suffix."""
    digits = quantity.rstrip("mkKMGTi")
    return f"{(Decimal(digits) * factor).normalize():f}{quantity[len(digits) :]}"
