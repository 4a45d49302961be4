"""The default FineTuneRuntime: created at start when absent, never overwritten.

A chart cannot install a CRD and an object of it together, so the chart renders the runtime into a ConfigMap, and the
operator creates it. From then on it belongs to the platform team.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import yaml

from finetune_operator.errors import AlreadyExists, KubernetesError
from finetune_operator.shell.kube import RUNTIMES, Kube

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0


async def ensure_default_runtime(kube: Kube, path: Path) -> None:
    """Create it, trying for as long as it takes: the CRD may still be being established."""
    manifest = yaml.safe_load(await asyncio.to_thread(path.read_text, encoding="utf-8"))
    name = manifest["metadata"]["name"]
    while True:
        try:
            await kube.create(RUNTIMES, manifest)
            logger.info("created the default FineTuneRuntime %r", name)
            return
        except AlreadyExists:
            logger.info("FineTuneRuntime %r exists and stays as it is", name)
            return
        except KubernetesError as error:
            logger.warning("the default FineTuneRuntime %r is not created yet: %s", name, error)
            await asyncio.sleep(_RETRY_SECONDS)
