"""The manifest of a published adapter: what it is, what it came from, and whether a run has one already.

Torch-free, so that prepare can look for an earlier result.
"""

from __future__ import annotations

from pydantic import Field

from finetune_trainer.config import ContractModel, Digest, JobIdentity, Method, RunIdentity
from finetune_trainer.layout import MANIFEST
from finetune_trainer.messages import PublishedResult, Sample
from finetune_trainer.store import Store

ADAPTER_FILE = "adapter_model.safetensors"


class BaseModelRef(ContractModel):
    """The model that the adapter belongs to."""

    source_uri: str
    revision: str = ""
    digest: Digest


class PublishedFile(ContractModel):
    """One file of the folder."""

    sha256: Digest
    bytes: int


class AdapterManifest(ContractModel):
    """Lineage of a published adapter, version 1."""

    schema_version: int = 1
    job: JobIdentity
    run: RunIdentity
    attempt: int
    base_model: BaseModelRef
    data_digest: Digest
    method: Method
    metrics: dict[str, float]
    samples: list[Sample] = Field(default_factory=list)
    files: dict[str, PublishedFile]
    versions: dict[str, str]


def find_published(store: Store, run_digest: str) -> PublishedResult | None:
    """The result of this run when it is there already.

    Raises:
        ValueError: the folder holds the result of another run, or a manifest that cannot be read.
    """
    text = store.read(MANIFEST)
    if text is None:
        return None
    manifest = AdapterManifest.model_validate_json(text)
    if manifest.run.digest != run_digest:
        raise ValueError(f"{store.uri} holds the result of another run ({manifest.run.digest[:12]})")
    return PublishedResult(uri=store.uri, digest=manifest.files[ADAPTER_FILE].sha256, metrics=manifest.metrics)
