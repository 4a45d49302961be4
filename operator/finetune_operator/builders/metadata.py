"""Metadata of every child: the labels it is found by and the owner it dies with."""

from __future__ import annotations

from typing import Any, Protocol

from finetune_operator import constants


class Owner(Protocol):
    """The FineTuneJob, as far as builders know it."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...


def child_labels(owner: Owner, *, stage: str, run: str, attempt: int | None = None) -> dict[str, str]:
    """Labels by which the operator lists children."""
    labels = {
        constants.MANAGED_BY_LABEL: constants.MANAGED_BY,
        constants.JOB_LABEL: owner.name,
        constants.JOB_UID_LABEL: owner.uid,
        constants.STAGE_LABEL: stage,
        constants.RUN_LABEL: run[:12],
    }
    if attempt is not None:
        labels[constants.ATTEMPT_LABEL] = str(attempt)
    return labels


def child_metadata(owner: Owner, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Name, labels and owner reference.

    ``blockOwnerDeletion`` stays false: foreground deletion of the FineTuneJob must not wait for a pod on a dead node.
    """
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": constants.API_VERSION,
                "kind": constants.JOB_KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def config_map(owner: Owner, name: str, labels: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    """An immutable ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(owner, name, labels),
        "immutable": True,
        "data": data,
    }
