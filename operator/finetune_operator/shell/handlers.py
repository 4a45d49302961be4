"""Every kopf decorator of the project. A handler wakes a key and nothing else.

Only ``on.event``: no annotations, no finalizers, no state in kopf. What the event says decides nothing, because by the
time of the pass it may be old; the pass reads for itself. It is kept as evidence of pods that are gone by then. All are
coroutines although none awaits anything: kopf would send plain functions to a thread, which costs more than they do.
"""

from __future__ import annotations

import asyncio
from typing import Any

import kopf

from finetune_operator import constants
from finetune_operator.config import OperatorConfig
from finetune_operator.shell.controller import STUCK_SECONDS, Controller
from finetune_operator.shell.default_runtime import ensure_default_runtime
from finetune_operator.shell.no_kopf_state import NoDifference, NoProgress
from finetune_operator.shell.object_key import ObjectKey
from finetune_operator.shell.served_kinds import keep_served
from finetune_operator.shell.watch_session import open_session


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Open everything that lives as long as the operator."""
    config: OperatorConfig = memo.config
    configure(settings, config)
    memo.controller = Controller(memo.kube, config, memo.metrics)
    await memo.controller.start()
    memo.served = asyncio.create_task(keep_served(memo.kube, memo.insights, settings))
    if config.default_runtime is not None:
        memo.default_runtime = asyncio.create_task(ensure_default_runtime(memo.kube, config.default_runtime))


def configure(settings: kopf.OperatorSettings, config: OperatorConfig) -> None:
    """kopf's settings: watch what is ours and nothing else, keep no state in the cluster, notice silent watches."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 20
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.label_selectors["batch", "v1", "jobs"] = constants.JOB_LABEL
    settings.watching.label_selectors["", "v1", "pods"] = constants.JOB_LABEL
    settings.process.ultimate_exiting_timeout = 25
    # A task for each object that was heard of lately, which keeps the object: at the start that is all there is.
    settings.queueing.idle_timeout = 0.2
    settings.watching.chunk_size = 250
    settings.persistence.diffbase_storage = NoDifference()
    settings.persistence.progress_storage = NoProgress()
    # A namespaced installation may not list namespaces or CRDs.
    settings.scanning.disabled = bool(config.namespaces)


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Close everything; a pass cut short is done again by the next operator."""
    memo.served.cancel()
    if "default_runtime" in memo:
        memo.default_runtime.cancel()
    if "controller" in memo:
        await memo.controller.close()


@kopf.on.login()
async def login(memo: kopf.Memo, **kwargs: Any) -> kopf.AiohttpSession | None:
    """In a pod by its service account, elsewhere by the kubeconfig; never by whatever client is installed."""
    await memo.login_pauses.wait()
    credentials = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
    return open_session(credentials) if credentials is not None else None


# Without the mode, kopf would let the probe wait and try the handler again for as long as it fails.
@kopf.on.probe(id="queue", errors=kopf.ErrorsMode.PERMANENT)
async def queue_moves(memo: kopf.Memo, **_: Any) -> str:
    """Liveness: keys must not wait while no worker moves."""
    controller: Controller = memo.controller
    if controller.dispatcher.is_stuck(STUCK_SECONDS):
        raise RuntimeError(f"no pass has begun or ended for {STUCK_SECONDS:.0f} s although jobs wait")
    return "ok"


@kopf.on.probe(id="watches", errors=kopf.ErrorsMode.PERMANENT)
async def watches_speak(memo: kopf.Memo, **_: Any) -> str:
    """Liveness: what the operator writes must come back through its watches."""
    if complaint := memo.controller.silent_watch():
        raise RuntimeError(complaint)
    return "ok"


@kopf.on.probe(id="watchers", errors=kopf.ErrorsMode.PERMANENT)
async def watchers_live(memo: kopf.Memo, **_: Any) -> str:
    """Liveness: kopf logs that one of its watches has failed for good, and goes on without it."""
    if complaint := memo.watchers.complaint():
        raise RuntimeError(complaint)
    return "ok"


@kopf.on.event(constants.GROUP, constants.VERSION, constants.JOB_PLURAL)
async def job_event(
    namespace: str | None, name: str, body: kopf.Body, memo: kopf.Memo, type: str | None, **_: Any
) -> None:
    """The FineTuneJob itself."""
    memo.metrics.event_came(constants.JOB_KIND)
    key = ObjectKey(namespace or "", name)
    if type == "DELETED":
        memo.controller.deleted(key, body["metadata"]["uid"])
        return
    memo.controller.saw(key, constants.JOB_KIND, body, type)


@kopf.on.event(constants.GROUP, constants.VERSION, constants.RUNTIME_PLURAL)
async def runtime_event(body: kopf.Body, memo: kopf.Memo, type: str | None, **_: Any) -> None:
    """A runtime."""
    memo.metrics.event_came(constants.RUNTIME_KIND)
    memo.controller.saw_runtime(body, type)


@kopf.on.event("batch", "v1", "jobs", labels={constants.JOB_LABEL: kopf.PRESENT})
async def child_job_event(
    namespace: str | None, labels: kopf.Labels, body: kopf.Body, memo: kopf.Memo, type: str | None, **_: Any
) -> None:
    """A Job of ours."""
    memo.metrics.event_came("Job")
    key = ObjectKey(namespace or "", labels[constants.JOB_LABEL])
    memo.controller.saw(key, "Job", body, type)


@kopf.on.event("", "v1", "pods", labels={constants.JOB_LABEL: kopf.PRESENT})
async def pod_event(
    namespace: str | None, labels: kopf.Labels, body: kopf.Body, memo: kopf.Memo, type: str | None, **_: Any
) -> None:
    """A pod of ours. How it was last seen is kept: it may be gone before the pass reads it."""
    memo.metrics.event_came("Pod")
    key = ObjectKey(namespace or "", labels[constants.JOB_LABEL])
    memo.controller.saw(key, "Pod", body, type)
