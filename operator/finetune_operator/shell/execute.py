"""Actions -> API calls, in the order that ``core/actions.py`` promises."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from finetune_operator import constants
from finetune_operator.core.actions import Actions, Deletion, Event, Manifest, Sweep, is_job
from finetune_operator.core.observed import JobObject
from finetune_operator.core.refusal import status_of_refusal
from finetune_operator.errors import (
    AlreadyExists,
    ChildRefused,
    Conflict,
    Forbidden,
    Invalid,
    KubernetesError,
    NotFound,
)
from finetune_operator.shell.kube import Kube, collection, item

logger = logging.getLogger(__name__)

Written = Callable[[Manifest], None]
"""Told of each child that was created and each status that was written, with the API server's answer."""


def _tell_nobody(_: Manifest) -> None:
    pass


async def _at_once() -> None:
    pass


async def execute(
    kube: Kube,
    job: JobObject,
    actions: Actions,
    written: Written = _tell_nobody,
    before_pods: Callable[[], Awaitable[None]] = _at_once,
) -> None:
    """Do what was decided; ``before_pods`` may make what asks for nodes wait, or raise ``Conflict``.

    Raises:
        Conflict: the job changed since it was read; the pass is dropped and decided anew.
        ChildRefused: a child cannot be created; the status says so, and the pass is tried again with backoff.
        KubernetesError: a call failed; the pass is tried again with backoff, and every step of it can be repeated.
    """
    for sweep in actions.sweep:
        await _sweep(kube, job, sweep)
    # What a Job's pods need is there before it, in any order.
    await asyncio.gather(*(_create_or_report(kube, job, each, written) for each in actions.create if not is_job(each)))
    for manifest in filter(is_job, actions.create):
        await before_pods()
        await _create_or_report(kube, job, manifest, written)
    if actions.status is not None:
        await _write_status(kube, job, actions.status, written)
    for deletion in actions.delete:
        await _delete(kube, job, deletion)
    for event in actions.events:
        await _send(kube, job, event)


async def _create_or_report(kube: Kube, job: JobObject, manifest: Manifest, written: Written) -> None:
    try:
        await _create(kube, job, manifest, written)
    except (ChildRefused, Forbidden, Invalid) as error:
        await _report_refusal(kube, job, manifest, str(error), written)
        raise ChildRefused(str(error)) from error


async def _create(kube: Kube, job: JobObject, manifest: Manifest, written: Written) -> None:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    try:
        written(await kube.create(collection(kind, job.namespace), manifest))
        logger.info("created %s %s", kind, name)
    except AlreadyExists:
        existing = (await kube.get(item(kind, job.namespace, name)))["metadata"]
        owners = existing.get("ownerReferences", [])
        is_labelled = existing.get("labels", {}).get(constants.JOB_UID_LABEL) == job.uid
        is_owned = any(owner.get("uid") == job.uid for owner in owners)
        if "deletionTimestamp" in existing:
            raise Conflict(f"{kind} {job.namespace}/{name} of an earlier time is being collected") from None
        if is_owned and (is_labelled or kind == "Service"):
            return
        if kind != "Service" and (is_owned or (is_labelled and not owners)):
            # Without our labels it would not be found, and without its owner it would be collected by nobody.
            await _delete(kube, job, Deletion(kind, name, existing["uid"]))
            raise Conflict(f"somebody edited {kind} {job.namespace}/{name}; it is made anew") from None
        if any(_is_namesake(owner, job) for owner in owners):
            raise Conflict(f"{kind} {job.namespace}/{name} of an earlier time is being collected") from None
        raise ChildRefused(
            f"{kind} {job.namespace}/{name} exists and does not belong to this FineTuneJob; delete it, or give the "
            "FineTuneJob another name"
        ) from None


def _is_namesake(owner: Manifest, job: JobObject) -> bool:
    """A FineTuneJob of this name that was deleted a moment ago."""
    return owner.get("kind") == constants.JOB_KIND and owner.get("name") == job.name


async def _report_refusal(kube: Kube, job: JobObject, manifest: Manifest, words: str, written: Written) -> None:
    child = f"{manifest['kind']} {manifest['metadata']['name']}"
    status = status_of_refusal(job, child, words, datetime.now(UTC))
    if status is not None:
        await _write_status(kube, job, status, written)


async def _write_status(kube: Kube, job: JobObject, status: Manifest, written: Written) -> None:
    body = {
        "apiVersion": constants.API_VERSION,
        "kind": constants.JOB_KIND,
        "metadata": {
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
            "resourceVersion": job.resource_version,
        },
        "status": status,
    }
    try:
        written(await kube.replace(item("FineTuneJob", job.namespace, job.name) + "/status", body))
    except NotFound:
        # Deleted while the pass ran: the next one sees that there is nothing to do.
        raise Conflict(f"FineTuneJob {job.namespace}/{job.name} was deleted meanwhile") from None


async def _delete(kube: Kube, job: JobObject, deletion: Deletion) -> None:
    body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    if deletion.uid is not None:
        body["preconditions"] = {"uid": deletion.uid}
    try:
        await kube.delete(item(deletion.kind, job.namespace, deletion.name), body)
        logger.info("deleted %s %s", deletion.kind, deletion.name)
    except (NotFound, Conflict):
        pass  # gone already, or a namesake of another uid


async def _sweep(kube: Kube, job: JobObject, sweep: Sweep) -> None:
    labels = {constants.JOB_UID_LABEL: job.uid, constants.STAGE_LABEL: sweep.stage}
    if sweep.attempt is not None:
        labels[constants.ATTEMPT_LABEL] = str(sweep.attempt)
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    for kind in ("ConfigMap", "Service"):
        await kube.delete(collection(kind, job.namespace), {}, {"labelSelector": selector})


async def _send(kube: Kube, job: JobObject, event: Event) -> None:
    """An event is a courtesy: that it cannot be written stops nothing. Its name makes it the same one every time."""
    identity = f"{job.uid}/{event.reason}/{event.key or event.message}"
    name = f"{job.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": constants.API_VERSION,
            "kind": constants.JOB_KIND,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "reason": event.reason,
        "message": event.message[:1024],
        "type": event.type,
        "source": {"component": constants.MANAGED_BY},
        "reportingComponent": constants.MANAGED_BY,
        "reportingInstance": constants.MANAGED_BY,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await kube.create(collection("Event", job.namespace), body)
    except AlreadyExists:
        pass
    except KubernetesError as error:
        logger.warning("event %s was not written: %s", event.reason, error)
