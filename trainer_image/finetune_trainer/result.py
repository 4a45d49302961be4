"""A published result: what it is, what it came from, whether a run has one already, and making it so.

Prepare and the trainer ask the same question with the same function, so neither uses what the other refuses.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ConfigDict, Field, ValidationError

from finetune_trainer.clock import utc_now
from finetune_trainer.config import ContractModel, Digest, JobIdentity, Method, RunIdentity
from finetune_trainer.layout import MANIFEST
from finetune_trainer.messages import PublishedResult, Sample
from finetune_trainer.store import Store

ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FILE = "model.safetensors"
MODEL_INDEX_FILE = "model.safetensors.index.json"
"""Instead of it, where the model is cut into several files."""
_TRIES = 3


@dataclass(frozen=True)
class Lineage:
    """What a result came from, in digests: results of one lineage are interchangeable."""

    run: str
    data: str
    model: str


class DamagedResultError(ValueError):
    """A result has a manifest, but its files do not match it."""


class ForeignResultError(ValueError):
    """The folder holds the result of another lineage."""


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

    model_config = ConfigDict(extra="ignore")  # a later version may have more fields

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

    @property
    def weights_file(self) -> str:
        """Where the weights are: an adapter's, or those of the whole model."""
        if self.method.full is None:
            return ADAPTER_FILE
        return MODEL_INDEX_FILE if MODEL_INDEX_FILE in self.files else MODEL_FILE

    @property
    def lineage(self) -> Lineage:
        """What it came from."""
        return Lineage(self.run.digest, self.data_digest, self.base_model.digest)


def find_result(store: Store, wanted: Lineage) -> PublishedResult | None:
    """The published adapter of this lineage, if it is there and whole.

    Raises:
        DamagedResultError: there is a manifest, but it cannot be read, or a file is not what it says.
        ForeignResultError: it is the result of another run, other data or another base model.
    """
    text = store.read(MANIFEST)
    if text is None:
        return None
    try:
        manifest = AdapterManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedResultError(f"{MANIFEST} cannot be used: {where} {first['msg']}") from error
    if manifest.lineage != wanted:
        raise ForeignResultError(f"{store.uri} holds another result: {manifest.lineage}, not {wanted}")
    for name, file in manifest.files.items():
        if "/" in name or name.startswith(".") or store.sha256(name) != file.sha256:
            raise DamagedResultError(f"{name} is missing or has other content than {MANIFEST} says")
    weights = manifest.weights_file
    if weights not in manifest.files:
        raise DamagedResultError(f"{MANIFEST} names no {weights}")
    return PublishedResult(uri=store.uri, digest=manifest.files[weights].sha256, metrics=manifest.metrics)


def publish(
    store: Store, manifest: AdapterManifest, files: Mapping[str, bytes], check_fence: Callable[[], None]
) -> PublishedResult:
    """Upload, the manifest last; a result that is there already is left alone, a damaged one is replaced.

    ``check_fence`` raises when a newer gang of the run exists. It is asked before every write, and what can be is
    created and not overwritten: a gang that was cut off for a while cannot touch the files of the gang that replaced
    it. Should both have written all the same, the end does not match the manifest, and the gang that is left writes
    again.

    Raises:
        ForeignResultError: the folder holds the result of another lineage.
        DamagedResultError: the store does not hold what was written to it.
    """
    for _ in range(_TRIES):
        try:
            if (published := find_result(store, manifest.lineage)) is not None:
                return published
        except DamagedResultError:
            check_fence()
            store.delete(MANIFEST)  # first, so that no manifest ever describes other files
        for name, data in files.items():
            check_fence()
            if not store.create(name, data):  # left by a gang that did not get to its manifest
                check_fence()
                store.write(name, data)
        check_fence()
        store.create(MANIFEST, manifest.to_json().encode())
        with suppress(DamagedResultError):
            if (published := find_result(store, manifest.lineage)) is not None:
                return published.model_copy(update={"time": utc_now()})
    raise DamagedResultError(f"{store.uri} does not hold what was written to it")
