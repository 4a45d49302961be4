"""Where something is read from or written to.

A location is exactly one of a URI and a persistentVolumeClaim. A user's ``file://`` is refused: it would name a path
of the pod, and with a host path volume a path of the node.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from finetune_operator.api.base import ApiModel, Rule, doc, rules

_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_PATH = r"^[A-Za-z0-9._][A-Za-z0-9._/-]*$"

_ONE_OF = Rule(
    "has(self.uri) != has(self.persistentVolumeClaim)",
    "must have exactly one of: uri, persistentVolumeClaim",
)
_NO_UP = Rule(
    "!has(self.path) || !self.path.split('/').exists(part, part == '..')",
    "path must not contain '..': name a path below the root of the volume",
)


class VolumeClaimLocation(ApiModel):
    """A path on a volume, by its claim in the job's namespace."""

    model_config = ConfigDict(json_schema_extra=rules(_NO_UP))

    claim_name: str = doc(
        "Name of a PersistentVolumeClaim in the job's namespace.",
        example="models",
        min_length=1,
        max_length=253,
        pattern=_NAME,
    )
    path: str = doc(
        "Path below the root of the volume, without a leading slash.",
        default="",
        example="smollm2-135m-instruct",
        max_length=512,
        pattern=r"^$|" + _PATH,
    )


def _hub_rule(kind: str, example: str) -> Rule:
    return Rule(
        "!has(self.uri) || self.uri.startsWith('hf://')",
        f"uri must start with hf://, e.g. {example}; for files on a volume use persistentVolumeClaim",
        expression=(
            f"'{kind} uri must start with hf://, e.g. {example}, is ' + self.uri + "
            "'; for files on a volume use persistentVolumeClaim'"
        ),
    )


MODEL_RULES = (_ONE_OF, _hub_rule("model", "hf://org/name@revision"))
DATA_RULES = (_ONE_OF, _hub_rule("dataset", "hf://datasets/org/name/train.jsonl"))


class ModelLocation(ApiModel):
    """A model folder: safetensors, config and tokenizer."""

    model_config = ConfigDict(json_schema_extra=rules(*MODEL_RULES))

    uri: str | None = doc(
        "A repository of the Hugging Face Hub; a revision pins it, else the commit found at the start is used.",
        default=None,
        example="hf://HuggingFaceTB/SmolLM2-135M-Instruct@main",
        max_length=512,
        min_length=1,
    )
    persistent_volume_claim: VolumeClaimLocation | None = doc(
        "A folder on a volume. It is used in place, read-only.",
        default=None,
        example={"claimName": "models", "path": "smollm2-135m-instruct"},
    )


class DataLocation(ApiModel):
    """A JSONL file, or a path in a dataset repository."""

    model_config = ConfigDict(json_schema_extra=rules(*DATA_RULES))

    uri: str | None = doc(
        "A JSONL file in a dataset repository of the Hugging Face Hub.",
        default=None,
        example="hf://datasets/org/name@main/train.jsonl",
        max_length=512,
        min_length=1,
    )
    persistent_volume_claim: VolumeClaimLocation | None = doc(
        "A JSONL file on a volume.",
        default=None,
        example={"claimName": "datasets", "path": "support.jsonl"},
    )


BUCKET_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?$"
"""A bucket and a prefix; no credentials, no query, no segment that is empty or begins with a dot."""
_BUCKET_URI_WORDS = (
    "must be s3://bucket/prefix with a bucket of 3 to 63 characters, letters, digits, '.', '_' and '-' in the prefix, "
    "and no '..', e.g. s3://finetune/checkpoints"
)
_BUCKET_URI_RULE = Rule(f"self.matches('{BUCKET_URI}') && !self.contains('..')", _BUCKET_URI_WORDS)
_SECRET_NEEDS_URI = Rule(
    "!has(self.secretRef) || has(self.uri)",
    "secretRef must be used with uri only: a persistentVolumeClaim needs no credentials",
)


def _is_bucket_uri(uri: str) -> str:
    if not re.fullmatch(BUCKET_URI.rstrip("$"), uri) or ".." in uri:
        raise ValueError(_BUCKET_URI_WORDS)
    return uri


BucketUri = Annotated[str, AfterValidator(_is_bucket_uri)]


_SEGMENT = r"([A-Za-z0-9_-]|\{namespace\})([A-Za-z0-9._-]|\{namespace\})*"
_BUCKET = r"([a-z0-9]|\{namespace\})([a-z0-9.-]|\{namespace\})*"
URI_PREFIX = rf"^(hf://((datasets/)?{_SEGMENT}(/{_SEGMENT})?/?)?|s3://({_BUCKET}(/{_SEGMENT})*/?)?)$"
"""A scheme, an organisation or a repository of the Hub (not a revision: it may hold slashes), or a bucket's prefix."""

UriPrefix = Annotated[str, Field(min_length=5, max_length=256, pattern=URI_PREFIX)]


class SecretReference(ApiModel):
    """A Secret in the job's namespace."""

    name: str = doc(
        "Name of a Secret in the job's namespace with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and "
        "AWS_SESSION_TOKEN where there is one.",
        example="s3-credentials",
        min_length=1,
        max_length=253,
        pattern=_NAME,
    )


class WritableLocation(ApiModel):
    """A folder on a volume or below a prefix of a bucket, that every node can write to."""

    model_config = ConfigDict(json_schema_extra=rules(_ONE_OF, _SECRET_NEEDS_URI))

    uri: BucketUri | None = doc(
        "A bucket of an S3 object store, and a prefix in it. Endpoint and region come from the runtime's env "
        "(AWS_ENDPOINT_URL, AWS_REGION); excludes persistentVolumeClaim.",
        default=None,
        example="s3://finetune/checkpoints",
        min_length=1,
        max_length=512,
        extra=rules(_BUCKET_URI_RULE),
    )
    persistent_volume_claim: VolumeClaimLocation | None = doc(
        "A folder on a volume that every node of the job can write to (ReadWriteMany); excludes uri.",
        default=None,
        example={"claimName": "finetune-storage", "path": "checkpoints"},
    )
    secret_ref: SecretReference | None = doc(
        "Credentials for uri. The pods get them as environment variables; the operator never reads them.",
        default=None,
        automatic="none; the store must let the pods in by itself",
        example={"name": "s3-credentials"},
    )


CHECKPOINT_RULES = (
    Rule(
        "!(has(self.uri) && has(self.persistentVolumeClaim))",
        "must have at most one of: uri, persistentVolumeClaim",
    ),
    _SECRET_NEEDS_URI,
)


class StorageLocation(ApiModel):
    """A folder that can be written to, from every node."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.persistentVolumeClaim)",
                "must have persistentVolumeClaim, e.g. {claimName: finetune-storage}",
            )
        )
    )

    persistent_volume_claim: VolumeClaimLocation | None = doc(
        "A folder on a volume that every node of the job can write to (ReadWriteMany).",
        default=None,
        example={"claimName": "finetune-storage", "path": "checkpoints"},
    )
