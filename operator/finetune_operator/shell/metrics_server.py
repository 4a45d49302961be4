"""``/metrics`` for Prometheus, in the operator's event loop: when that hangs, scrapes fail, and rightly so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from finetune_operator.errors import ConfigError
from finetune_operator.shell.metrics import Metrics


@asynccontextmanager
async def serve_metrics(metrics: Metrics, port: int) -> AsyncIterator[None]:
    """Serve for the duration of the block.

    Raises:
        ConfigError: the port cannot be listened on.
    """

    async def answer(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    loop = asyncio.get_running_loop()
    metrics.watch_tasks(lambda: len(asyncio.all_tasks(loop)))
    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()
    except OSError as error:
        raise ConfigError(
            f"FINETUNE_OPERATOR_METRICS_PORT must be a free port, is {port} ({error}); choose another one"
        ) from error
