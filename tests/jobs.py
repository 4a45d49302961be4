"""Manifests for tests against an API server, as a user would write them."""

from __future__ import annotations

from typing import Any

from e2e.kubectl import Json

CLAIMS = ("models", "datasets", "finetune-storage")
"""What these manifests mount."""


def a_runtime(name: str, **spec: Any) -> Json:
    """A FineTuneRuntime with one cpu pool of two nodes."""
    pool = {"name": "default", "device": "cpu", "nodes": 2, "gpusPerNode": 2, "cpuPerGpu": 1, "memoryPerGpu": "1Gi"}
    base = {
        "image": "localhost/finetune-trainer:dev",
        "pools": [pool],
        "storage": {"persistentVolumeClaim": {"claimName": "finetune-storage"}},
    }
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneRuntime",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def a_job(name: str = "quick", **spec: Any) -> Json:
    """A FineTuneJob on two nodes of runtime ``test``."""
    base = {
        "runtimeRef": {"name": "test"},
        "model": {"persistentVolumeClaim": {"claimName": "models", "path": "m"}},
        "dataset": {"persistentVolumeClaim": {"claimName": "datasets", "path": "d.jsonl"}, "evalFraction": 0.1},
        "method": {"lora": {"r": 8}},
        "training": {"maxSteps": 40, "globalBatchSize": 8},
        "placement": [{"nodes": 2}],
    }
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def a_claim(name: str, volume: str = "") -> Json:
    """A claim that nothing has to bind; with a volume it looks as if it was bound, which the scheduler asks for."""
    claim: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "",
        },
    }
    if volume:
        claim["metadata"]["annotations"] = {"pv.kubernetes.io/bind-completed": "yes"}
        claim["spec"]["volumeName"] = volume
    return claim


def a_volume(name: str) -> Json:
    """A volume that every node reaches, as far as the scheduler knows."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Gi"},
            "nfs": {"server": "nfs.example.org", "path": "/"},
        },
    }
