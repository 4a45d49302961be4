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
from finetune_operator.shell.watch_session import LoginPauses
from finetune_operator.shell.watchers import Watchers

COLLECT_SECONDS = 10.0
"""Between two times that old garbage is looked for."""


def main() -> int:
    """Run until SIGTERM."""
    try:
        config = OperatorConfig.from_env()
        set_up_logging(config.log_level, config.log_format)
        calm_garbage_collector()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 64
    return 0


def calm_garbage_collector() -> None:
    """What was imported stays; answers of the API server, which hold no cycles, must not set it off all the time.

    But each event does hold one: kopf's views of an object know each other, and some 8 kB of JSON are collected or are
    not. So what a young collection meets at work is looked at again soon.
    """
    gc.freeze()
    gc.set_threshold(20_000, 2, 20)


async def _collect_garbage() -> None:
    """What failed requests leave is old when it becomes garbage; by itself the collector seldom looks there."""
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        gc.collect()


async def _run(config: OperatorConfig) -> None:
    metrics, insights = Metrics(), Insights()
    async with serve_metrics(metrics, config.metrics_port):
        memo = kopf.Memo(
            config=config,
            kube=await Kube.connect(metrics),
            metrics=metrics,
            insights=insights,
            login_pauses=LoginPauses(),
            watchers=Watchers(),
        )
        garbage = asyncio.create_task(_collect_garbage(), name="garbage")
        await kopf.operator(
            memo=memo,
            insights=insights,
            clusterwide=not config.namespaces,
            namespaces=config.namespaces,
            liveness_endpoint=f"http://0.0.0.0:{config.probe_port}/healthz",
        )
        garbage.cancel()


if __name__ == "__main__":
    sys.exit(main())
