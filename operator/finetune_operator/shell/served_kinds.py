"""Whether kopf watches our kinds, and another look at what there is when it missed one.

kopf asks for the served kinds when a CRD changes. Discovery may lag behind the last change of a CRD that is made, or
made again; then kopf finds nothing, no further event comes, and an operator that looks well never sees a job again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import kopf
from kopf._cogs.structs.references import Insights
from kopf._core.reactor.observation import process_discovered_resource_event

from finetune_operator import constants
from finetune_operator.errors import NotFound
from finetune_operator.shell.kube import Kube

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
KINDS = frozenset({constants.JOB_PLURAL, constants.RUNTIME_PLURAL})


async def keep_served(kube: Kube, insights: Insights, settings: kopf.OperatorSettings) -> None:
    """Look again and again; while all kinds are watched this costs nothing."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            await serve_what_is_there(kube, insights, settings)
        except Exception as error:
            logger.warning("the kinds that the API server has are not known: %s", error)


async def serve_what_is_there(kube: Kube, insights: Insights, settings: kopf.OperatorSettings) -> None:
    """Have kopf look again when the API server has a kind of ours that kopf does not watch."""
    missed = KINDS - {each.plural for each in insights.watched_resources if each.group == constants.GROUP}
    if not missed:
        return
    try:
        found = await kube.get(f"/apis/{constants.API_VERSION}")
    except NotFound:
        return  # neither of the CRDs is there
    if missed & {each["name"] for each in found["resources"]}:
        logger.info("watching %s", ", ".join(sorted(missed)))
        change: Any = {"type": "MODIFIED", "object": {"spec": {"group": constants.GROUP}}}
        await process_discovered_resource_event(
            raw_event=change, settings=settings, registry=kopf.get_default_registry(), insights=insights
        )
