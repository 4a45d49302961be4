"""What must hold before a run is accepted: an ordered chain of checks, each named after the violation it finds.

A violation is a value, never an exception. Nothing here is final: a check that fails is tried again on every pass,
because GitOps applies a job, its runtime and its claims in any order. What only an edit of the job or the runtime can
mend is ``stalled``, so that GitOps tools report it at once instead of waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.methods import METHODS
from finetune_operator.api.runtime import FineTuneRuntimeSpec, LabelSelector, LabelSelectorRequirement
from finetune_operator.constants import Reason
from finetune_operator.core.observed import Observed
from finetune_operator.core.planner.placement import candidates, pools_for
from finetune_operator.core.planner.precision import resolve_precision
from finetune_operator.core.planner.strategy import choose_strategy
from finetune_trainer.compatibility import Combination, find_conflict
from finetune_trainer.uri_prefixes import find_uri_fault, resolve_prefixes

RECHECK_SECONDS = 30.0


@dataclass(frozen=True)
class Violation:
    """Why a run is not accepted (yet)."""

    reason: str
    message: str
    """Field, value and remedy."""
    stalled: bool = True


Check = Callable[[Observed, FineTuneJobSpec, FineTuneRuntimeSpec], Violation | None]


def first_violation(observed: Observed) -> Violation | None:
    """The first check that fails; None when the run can be accepted."""
    spec, runtime = observed.job.spec, observed.runtime
    if spec is None:
        return Violation(
            Reason.INVALID_SPEC, f"{observed.job.spec_error}; edit the field: the job is then looked at again"
        )
    if runtime is None:
        return _runtime_is_missing(observed, spec)
    for check in CHECKS:
        violation = check(observed, spec, runtime)
        if violation is not None:
            return violation
    return None


def _runtime_is_missing(observed: Observed, spec: FineTuneJobSpec) -> Violation:
    name = spec.runtime_ref.name
    if observed.runtime_error:
        return Violation(
            Reason.INVALID_SPEC,
            f"spec.runtimeRef.name: FineTuneRuntime {name!r} cannot be used because of its {observed.runtime_error}; "
            "ask its owner to mend it, or name another (kubectl get finetuneruntimes). It is looked at again as soon "
            "as it has changed",
        )
    return Violation(
        Reason.RUNTIME_NOT_FOUND,
        f"spec.runtimeRef.name: FineTuneRuntime {name!r} does not exist; create it or name another "
        "(kubectl get finetuneruntimes). It is looked for again as soon as one appears",
        stalled=False,
    )


def _namespace_is_not_allowed(
    observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec
) -> Violation | None:
    if runtime.allowed_namespaces is None or selects(runtime.allowed_namespaces, dict(observed.namespace_labels)):
        return None
    return Violation(
        Reason.NAMESPACE_NOT_ALLOWED,
        f"spec.runtimeRef.name: FineTuneRuntime {spec.runtime_ref.name!r} does not allow namespace "
        f"{observed.job.namespace!r}; use another runtime, or ask its owner to add the namespace to allowedNamespaces",
    )


def _uri_is_not_allowed(observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec) -> Violation | None:
    if runtime.allowed_uri_prefixes is None:
        return None
    prefixes = resolve_prefixes(runtime.allowed_uri_prefixes, observed.job.namespace)
    for field, uri in uris(spec).items():
        fault = find_uri_fault(uri, prefixes)
        if fault is not None:
            return Violation(
                Reason.URI_NOT_ALLOWED,
                f"{field}: {uri!r} is not allowed by FineTuneRuntime {spec.runtime_ref.name!r}: {fault}; use such a "
                "URI or a persistentVolumeClaim, or ask the runtime's owner to add a prefix to allowedUriPrefixes",
            )
    return None


def _priority_class_is_not_allowed(
    _observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec
) -> Violation | None:
    name, allowed = spec.priority_class_name, runtime.allowed_priority_class_names
    if name is None or name in allowed:
        return None
    return Violation(
        Reason.PRIORITY_CLASS_NOT_ALLOWED,
        f"spec.priorityClassName: {name!r} is not allowed by FineTuneRuntime {spec.runtime_ref.name!r}; "
        + (f"name one of: {', '.join(allowed)}" if allowed else "it allows none: remove the field")
        + ", or ask the runtime's owner to add it to allowedPriorityClassNames",
    )


def _pod_metadata_is_not_allowed(
    _observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec
) -> Violation | None:
    allowed = runtime.allowed_pod_metadata_prefixes
    for field, keys in (("labels", spec.pod_metadata.labels), ("annotations", spec.pod_metadata.annotations)):
        for key in sorted(keys):
            domain, slash, _ = key.rpartition("/")
            if f"{domain}/" in allowed or (field == "labels" and not slash):
                continue
            free = "a key without a prefix, or " if field == "labels" else ""
            return Violation(
                Reason.POD_METADATA_NOT_ALLOWED,
                f"spec.podMetadata.{field}: key {key!r} is not allowed by FineTuneRuntime {spec.runtime_ref.name!r}; "
                f"use {free}one of these prefixes: {', '.join(allowed) or '(none)'}, or ask the runtime's owner to add "
                f"{f'{domain}/' if slash else 'one'} to allowedPodMetadataPrefixes",
            )
    return None


def _pool_does_not_exist(_observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec) -> Violation | None:
    names = [pool.name for pool in runtime.pools]
    for number, placement in enumerate(spec.placement):
        if placement.pool is not None and placement.pool not in names:
            return Violation(
                Reason.POOL_NOT_FOUND,
                f"spec.placement[{number}].pool: FineTuneRuntime {spec.runtime_ref.name!r} has no pool "
                f"{placement.pool!r}; name one of: {', '.join(names)}",
            )
    return None


def _placement_is_too_large(
    _observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec
) -> Violation | None:
    for number, placement in enumerate(spec.placement):
        if pools_for(runtime, placement):
            continue
        pools = [pool for pool in runtime.pools if placement.pool in (None, pool.name)]
        has = "; ".join(f"pool {pool.name!r} has {pool.nodes} x {pool.gpus_per_node}" for pool in pools)
        return Violation(
            Reason.PLACEMENT_TOO_LARGE,
            f"spec.placement[{number}]: nodes {placement.nodes} x gpusPerNode {placement.gpus_per_node} is more than "
            f"there is ({has}); ask for fewer nodes or gpusPerNode, or for a larger pool",
        )
    return None


def _method_is_not_one(_observed: Observed, spec: FineTuneJobSpec, _runtime: FineTuneRuntimeSpec) -> Violation | None:
    """The CRD refuses it; what an older one let through is stored all the same."""
    chosen = spec.method.chosen if spec.method is not None else []
    if len(chosen) == 1:
        return None
    return Violation(
        Reason.INVALID_SPEC,
        f"spec.method: must have exactly one of: {', '.join(METHODS)}, has {' and '.join(chosen) or 'none'}; "
        "e.g. method: {lora: {r: 16}}",
    )


def _settings_exclude_each_other(
    _observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec
) -> Violation | None:
    qlora = spec.method.qlora if spec.method is not None else None
    for candidate in candidates(runtime, spec.placement):
        spread = choose_strategy(spec.method_name, spec.distributed, candidate.placement, candidate.pool)
        conflict = find_conflict(
            Combination(
                method=spec.method_name,
                strategy=spread.strategy,
                cpu_offload=spread.cpu_offload,
                nodes=candidate.placement.nodes,
                optim=spec.training.optim,
                precision=resolve_precision(spec.training, candidate.pool),
                quant_storage=qlora.quant_storage if qlora is not None else None,
            )
        )
        if conflict is not None:
            return Violation(Reason.SETTINGS_CONFLICT, f"{conflict.message}; {conflict.remedy}")
    return None


def _storage_is_not_set(_observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec) -> Violation | None:
    if spec.checkpoint.persistent_volume_claim or (runtime.storage and runtime.storage.persistent_volume_claim):
        return None
    if spec.checkpoint.uri:
        return Violation(
            Reason.STORAGE_NOT_SET,
            f"spec.checkpoint.uri: {spec.checkpoint.uri} takes the checkpoints, but the checked model and dataset are "
            f"staged on a volume, and FineTuneRuntime {spec.runtime_ref.name!r} has no storage; set its "
            "spec.storage.persistentVolumeClaim, or use spec.checkpoint.persistentVolumeClaim instead of the uri",
        )
    return Violation(
        Reason.STORAGE_NOT_SET,
        f"spec.checkpoint.persistentVolumeClaim: is empty, and FineTuneRuntime {spec.runtime_ref.name!r} has no "
        "storage; name a claim that every node can write to, e.g. {claimName: finetune-storage}",
    )


def _claim_does_not_exist(observed: Observed, spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec) -> Violation | None:
    for field, claim in claims(spec, runtime).items():
        if claim in observed.missing_claims:
            return Violation(
                Reason.CLAIM_NOT_FOUND,
                f"{field}: PersistentVolumeClaim {claim!r} does not exist in namespace {observed.job.namespace!r}; "
                f"create it or name another. It is looked for again every {RECHECK_SECONDS:.0f} s",
                stalled=False,
            )
    return None


CHECKS: tuple[Check, ...] = (
    _namespace_is_not_allowed,  # before anything that tells about the runtime
    _uri_is_not_allowed,
    _priority_class_is_not_allowed,
    _pod_metadata_is_not_allowed,
    _pool_does_not_exist,
    _placement_is_too_large,
    _method_is_not_one,
    _settings_exclude_each_other,  # needs the method and the pool
    _storage_is_not_set,
    _claim_does_not_exist,  # last: it may take the user a while, and everything else is known to be right
)


def uris(spec: FineTuneJobSpec) -> dict[str, str]:
    """Field path -> every URI of the job."""
    named = {
        "spec.model.uri": spec.model.uri,
        "spec.dataset.uri": spec.dataset.uri,
        "spec.dataset.eval.uri": spec.dataset.eval.uri if spec.dataset.eval else None,
        "spec.checkpoint.uri": spec.checkpoint.uri,
        "spec.output.uri": spec.output.uri if spec.output else None,
    }
    return {field: uri for field, uri in named.items() if uri is not None}


def claims(spec: FineTuneJobSpec, runtime: FineTuneRuntimeSpec) -> dict[str, str]:
    """Field path -> name of every claim that the run would mount."""
    storage = runtime.storage.persistent_volume_claim if runtime.storage else None
    checkpoint = spec.checkpoint.persistent_volume_claim
    named = {
        "spec.model.persistentVolumeClaim.claimName": spec.model.persistent_volume_claim,
        "spec.dataset.persistentVolumeClaim.claimName": spec.dataset.persistent_volume_claim,
        "spec.dataset.eval.persistentVolumeClaim.claimName": (
            spec.dataset.eval.persistent_volume_claim if spec.dataset.eval else None
        ),
        "spec.checkpoint.persistentVolumeClaim.claimName": checkpoint,
        "spec.output.persistentVolumeClaim.claimName": spec.output.persistent_volume_claim if spec.output else None,
    }
    if checkpoint is None:
        named[f"storage of FineTuneRuntime {spec.runtime_ref.name!r}"] = storage
    return {field: location.claim_name for field, location in named.items() if location is not None}


def selects(selector: LabelSelector, labels: dict[str, str]) -> bool:
    """Whether a label selector selects an object with ``labels``; an empty selector selects everything."""
    equal = all(labels.get(key) == value for key, value in selector.match_labels.items())
    return equal and all(_holds(item, labels) for item in selector.match_expressions)


def _holds(requirement: LabelSelectorRequirement, labels: dict[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
