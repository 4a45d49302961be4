"""What a job may say about its pods besides where they run: labels and annotations, for reports, and their priority.

Controllers act on metadata: a label makes a mesh inject a sidecar, a queue take the pod, a cloud lend it an identity.
So nothing is allowed by default but labels without a prefix, and the runtime's owner names the prefixes that are
harmless in the cluster. What Kubernetes and this operator own is refused before that.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from finetune_operator.api.base import ApiModel, Rule, doc, rules

RESERVED_PREFIX = r"^([^/]*[.])?(kubernetes[.]io|k8s[.]io|x-k8s[.]io|finetune-operator[.]io)/"
"""Keys that Kubernetes, its projects (Kueue, JobSet: ``x-k8s.io``) and this operator act on."""
RESERVED_NAMES = ("aadpodidbinding", "controller-revision-hash", "controller-uid", "job-name", "pod-template-hash")
"""The same from before prefixes were the custom."""

_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_KEY = rf"^({_DOMAIN}/)?{_NAME}$"
_LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$"
_MOST_KEYS = 16

PriorityClassName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
MetadataPrefix = Annotated[str, Field(min_length=2, max_length=254, pattern=rf"^{_DOMAIN}/$")]

_KEY_WORDS = "must be a name of letters, digits, '-', '_' and '.', with a domain and '/' before it at most"
_RESERVED_WORDS = (
    "must not be one of Kubernetes or of this operator (kubernetes.io, k8s.io, x-k8s.io, finetune-operator.io and "
    f"below, {', '.join(RESERVED_NAMES)}); use a key of your own"
)
_IS_RESERVED = f"(key.matches('{RESERVED_PREFIX}') || key in [{', '.join(map(repr, RESERVED_NAMES))}])"


def _key_rules(field: str) -> dict[str, Any]:
    """Bounds and rules of a map whose keys become keys of pods; each names the first key that it refuses."""
    return {
        "maxProperties": _MOST_KEYS,
        **rules(
            Rule(
                f"self.all(key, key.matches('{_KEY}'))",
                f"a key {_KEY_WORDS}",
                expression=f"'{field}: key ' + self.filter(key, !key.matches('{_KEY}'))[0] + \" {_KEY_WORDS}\"",
            ),
            Rule(
                f"self.all(key, !{_IS_RESERVED})",
                f"a key {_RESERVED_WORDS}",
                expression=f"'{field}: key ' + self.filter(key, {_IS_RESERVED})[0] + ' {_RESERVED_WORDS}'",
            ),
        ),
    }


def _check_keys(pairs: dict[str, str]) -> dict[str, str]:
    """The CRD's rules once more, for what an older CRD let through."""
    for key in pairs:
        if not re.fullmatch(_KEY.strip("^$"), key):
            raise ValueError(f"key {key} {_KEY_WORDS}")
        if re.match(RESERVED_PREFIX, key) or key in RESERVED_NAMES:
            raise ValueError(f"key {key} {_RESERVED_WORDS}")
    return pairs


Labels = Annotated[
    dict[str, Annotated[str, Field(max_length=63, pattern=_LABEL_VALUE)]],
    AfterValidator(_check_keys),
]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=1024)]], AfterValidator(_check_keys)]


class PodMetadata(ApiModel):
    """Metadata of the pods of both stages, for reports such as cost allocation."""

    labels: Labels = doc(
        "Labels of the pods. A key without a prefix is free, one with a prefix must be in the runtime's "
        "allowedPodMetadataPrefixes. The operator's own labels cannot be set.",
        default={},
        automatic="none",
        example={"cost-center": "cc-4711"},
        extra=_key_rules("podMetadata.labels"),
    )
    annotations: Annotations = doc(
        "Annotations of the pods; the prefix of each key must be in the runtime's allowedPodMetadataPrefixes.",
        default={},
        automatic="none",
        example={"cost.example.org/project": "support bot"},
        extra=_key_rules("podMetadata.annotations"),
    )
