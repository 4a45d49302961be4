"""The snapshot taken at acceptance: what a run was accepted with, unchanged until its end.

Every attempt of the run is built from it, so edits of the FineTuneJob or its runtime and upgrades of the chart never
change a running job. It is stored in an immutable ConfigMap, and holds the contract version that its image speaks.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.runtime import FineTuneRuntimeSpec
from finetune_trainer.config import CONTRACT_VERSION

# What can change from attempt to attempt without changing the result is no part of a run's identity.
_TOPOLOGY_FIELDS = {"perDeviceTrainBatchSize", "gradientCheckpointing"}
_LATER_FIELDS = (("dataset", "packing", False), ("training", "optim", "adamw_torch"))
"""Section, field and default of what the first version did not have."""


class Snapshot(BaseModel):
    """What a run was accepted with."""

    model_config = ConfigDict(frozen=True)

    contract_version: int = CONTRACT_VERSION
    digest: str
    spec: FineTuneJobSpec
    runtime: FineTuneRuntimeSpec

    def to_json(self) -> str:
        """The text in the ConfigMap."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """Read it back; raises ``ValueError`` when it was written by something else."""
        return cls.model_validate_json(text)


def take_snapshot(spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec) -> Snapshot:
    """Freeze what the run is accepted with."""
    return Snapshot(digest=run_digest(spec), spec=spec, runtime=runtime)


def run_digest(spec: FineTuneJobSpec) -> str:
    """sha256 of what decides the result: model, dataset, method, training, evaluation and runId, in canonical JSON.

    Placement, distributed, checkpoint, suspend, limits and the runtime are left out: they decide where and when, not
    what. Defaults that depend on other fields are resolved first: to write a default out is no other run. A field that
    came later counts only where it differs from its default, so that older runs keep their digest.
    """
    whole = spec.to_dict()
    identity: dict[str, Any] = {
        key: whole.get(key) for key in ("model", "dataset", "method", "training", "evaluation", "runId")
    }
    identity["training"] = {key: value for key, value in whole["training"].items() if key not in _TOPOLOGY_FIELDS}
    identity["training"]["numTrainEpochs"] = spec.training.resolved_epochs
    identity["dataset"]["evalFraction"] = spec.dataset.eval_fraction or 0.0
    for section, name, default in _LATER_FIELDS:
        if identity[section].get(name) == default:
            del identity[section][name]
    if spec.method is not None and spec.method.adapter is not None:
        for adapter in identity["method"].values():
            adapter["loraAlpha"] = spec.method.adapter.resolved_alpha
            adapter.pop("quantStorage", None)  # how the same weights lie in memory
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
