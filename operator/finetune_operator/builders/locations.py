"""Locations -> mounts and URIs.

Every claim is mounted at ``/mnt/finetune/<role>``, and the trainer sees URIs only. In a status the same place is shown
as ``pvc://<claim>/<path>``, which means something outside the pod; ``s3://`` URIs are the same on both sides. The cache
of models and data lies on the storage's volume always: every node reads it as files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from finetune_operator.api.locations import DataLocation, ModelLocation, VolumeClaimLocation
from finetune_operator.api.status import FactsStatus
from finetune_operator.builders.metadata import Owner
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer import layout
from finetune_trainer.config import MOUNT_ROOT
from finetune_trainer.uri_prefixes import resolve_prefixes

Role = Literal["model", "dataset", "eval", "storage", "output"]
READ_ONLY_ROLES: frozenset[Role] = frozenset({"model", "dataset", "eval"})


@dataclass(frozen=True)
class Mounts:
    """The claims that a run mounts, by role."""

    by_role: dict[Role, VolumeClaimLocation]

    def uri(self, role: Role) -> str:
        """``file://`` URI of the location of a role."""
        return layout.join(f"file://{MOUNT_ROOT}/{role}", *filter(None, [self.by_role[role].path]))

    def volumes(self) -> list[dict[str, Any]]:
        """Volumes of the pod."""
        return [
            {
                "name": role,
                "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": role in READ_ONLY_ROLES},
            }
            for role, claim in self.by_role.items()
        ]

    def volume_mounts(self) -> list[dict[str, Any]]:
        """Mounts of the container."""
        return [
            {"name": role, "mountPath": f"{MOUNT_ROOT}/{role}", "readOnly": role in READ_ONLY_ROLES}
            for role in self.by_role
        ]


def mounts_of(snapshot: Snapshot) -> Mounts:
    """All claims of a run.

    Raises:
        ValueError: there is no storage; acceptance has ruled that out.
    """
    spec = snapshot.spec
    storage = spec.checkpoint.persistent_volume_claim
    if storage is None and snapshot.runtime.storage is not None:
        storage = snapshot.runtime.storage.persistent_volume_claim
    if storage is None:
        raise ValueError("a snapshot must have storage")
    roles: dict[Role, VolumeClaimLocation | None] = {
        "model": spec.model.persistent_volume_claim,
        "dataset": spec.dataset.persistent_volume_claim,
        "eval": spec.dataset.eval.persistent_volume_claim if spec.dataset.eval else None,
        "storage": storage,
        "output": spec.output.persistent_volume_claim if spec.output else None,
    }
    return Mounts({role: claim for role, claim in roles.items() if claim is not None})


def source_uri(
    mounts: Mounts, role: Literal["model", "dataset", "eval"], location: ModelLocation | DataLocation
) -> str:
    """Where prepare reads from."""
    return location.uri or mounts.uri(role)


def cache_uri(mounts: Mounts) -> str:
    """Where prepare stages models and data."""
    return layout.join(mounts.uri("storage"), "cache")


def checkpoints_uri(snapshot: Snapshot, mounts: Mounts) -> str:
    """Where all checkpoints lie: in a bucket, or on the storage's volume beside cache and results."""
    return snapshot.spec.checkpoint.uri or layout.join(mounts.uri("storage"), "checkpoints")


def outputs_uri(snapshot: Snapshot, mounts: Mounts) -> str:
    """Where results are published."""
    output = snapshot.spec.output
    if output is not None and output.uri is not None:
        return output.uri
    return mounts.uri("output") if "output" in mounts.by_role else layout.join(mounts.uri("storage"), "output")


def result_uri(snapshot: Snapshot, mounts: Mounts, owner: Owner, facts: FactsStatus) -> str:
    """The folder of this run's result, as a pod names it."""
    job_output = layout.output_uri(outputs_uri(snapshot, mounts), owner.namespace, owner.name)
    return layout.result_uri(job_output, snapshot.digest, facts.dataset.digest, facts.model.digest)


def allowed_uri_prefixes(snapshot: Snapshot, namespace: str) -> list[str] | None:
    """What every URI of a stage's configuration must begin with: what the runtime allows, and the mounts."""
    allowed = snapshot.runtime.allowed_uri_prefixes
    return None if allowed is None else [*resolve_prefixes(allowed, namespace), f"file://{MOUNT_ROOT}/"]


def public_uri(snapshot: Snapshot, uri: str) -> str:
    """A pod's ``file:///mnt/finetune/<role>/…`` as ``pvc://<claim>/…``; other URIs stay as they are."""
    for role, claim in mounts_of(snapshot).by_role.items():
        root = f"file://{MOUNT_ROOT}/{role}"
        if uri == root or uri.startswith(root + "/"):
            return f"pvc://{claim.claim_name}{uri.removeprefix(root)}"
    return uri
