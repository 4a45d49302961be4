"""``python -m finetune_operator``: read the settings, set up logging, run kopf. The only entry point."""

from __future__ import annotations

import asyncio
import logging
import sys

import kopf

from finetune_operator.config import OperatorConfig
from finetune_operator.errors import ConfigError
from finetune_operator.shell import handlers  # noqa: F401  (registers the handlers)
from finetune_operator.shell.kube import Kube


def main() -> int:
    """Run until SIGTERM."""
    try:
        config = OperatorConfig.from_env()
        logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        for noisy in ("kopf.objects", "kopf", "kopf.activities", "aiohttp.access"):
            logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(config.log_level)))
        asyncio.run(_run(config))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 64
    return 0


async def _run(config: OperatorConfig) -> None:
    kube = await Kube.connect()
    await kopf.operator(
        memo=kopf.Memo(config=config, kube=kube),
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{config.probe_port}/healthz",
    )


if __name__ == "__main__":
    sys.exit(main())
