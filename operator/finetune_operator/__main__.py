"""``python -m finetune_operator``: read the settings, set up logging, run kopf. The only entry point."""

from __future__ import annotations

import asyncio
import gc
import sys

import kopf
import uvloop
from kopf._cogs.structs.references import Insights

from finetune_operator.config import OperatorConfig
from finetune_operator.errors import ConfigError
from finetune_operator.shell import handlers  # noqa: F401  (registers the handlers)
from finetune_operator.shell.kube import Kube
from finetune_operator.shell.log_lines import set_up_logging
from finetune_operator.shell.metrics import Metrics
from finetune_operator.shell.metrics_server import serve_metrics


def main() -> int:
    """Run until SIGTERM."""
    try:
        config = OperatorConfig.from_env()
        set_up_logging(config.log_level, config.log_format)
        _calm_garbage_collector()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 64
    return 0


def _calm_garbage_collector() -> None:
    """What was imported stays; answers of the API server, which hold no cycles, must not set it off all the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _run(config: OperatorConfig) -> None:
    metrics, insights = Metrics(), Insights()
    async with serve_metrics(metrics, config.metrics_port):
        kube = await Kube.connect(metrics)
        await kopf.operator(
            memo=kopf.Memo(config=config, kube=kube, metrics=metrics, insights=insights),
            insights=insights,
            clusterwide=not config.namespaces,
            namespaces=config.namespaces,
            liveness_endpoint=f"http://0.0.0.0:{config.probe_port}/healthz",
        )


if __name__ == "__main__":
    sys.exit(main())
