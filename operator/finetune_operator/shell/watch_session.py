"""The HTTP session of kopf's watches. It parses the long listings with which they begin, and is otherwise kopf's own.

The standard library takes seconds for thousands of pods, in which the event loop stands still, and several times the
memory. A third of each object is ``managedFields``, which nobody here looks at.

kopf asks for a session at the start and whenever the API server answers 401. Should the next one be equal to one that
was refused, all watches would end for good, and the operator would hear nothing any more: but such an answer may come
once, from a server that restarts or a webhook that is away, and tokens are renewed in place. So no two sessions are
equal, and what keeps kopf from asking all the time is a pause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import kopf
import orjson

from finetune_operator.core.backoff import doubled

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
CALM_SECONDS = 60.0
"""A session that was good for so long is followed by the next one at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WatchSession(kopf.AiohttpSession):
    """As kopf's own, and equal to no other."""


class LoginPauses:
    """Between sessions that are refused one after the other."""

    def __init__(self) -> None:
        self._times = 0
        self._last = float("-inf")

    async def wait(self) -> None:
        """Not before the first session; each time longer after that."""
        self._times = self._times + 1 if time.monotonic() - self._last < CALM_SECONDS else 0
        await asyncio.sleep(doubled(FIRST_PAUSE_SECONDS, self._times, LONGEST_PAUSE_SECONDS))
        self._last = time.monotonic()


def open_session(credentials: kopf.ConnectionInfo) -> WatchSession:
    """To be called in the event loop; kopf closes it."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=credentials.as_ssl_context()),
        headers=credentials.as_http_headers(),
        proxy=credentials.proxy_url,
        trust_env=credentials.trust_env,
        response_class=_Response,
    )
    return WatchSession(
        server=credentials.server,
        default_namespace=credentials.default_namespace,
        priority=credentials.priority,
        expiration=credentials.expiration,
        aiohttp_session=session,
    )


class _Stream:
    """The body of an answer. kopf closes a session that was refused while its other watches read."""

    def __init__(self, stream: aiohttp.StreamReader) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """That the connection is closed is no bug of the reader, as ``aiohttp`` has it: kopf opens another one."""
        try:
            async for chunk in self._stream.iter_chunked(size):
                yield chunk
        except RuntimeError as error:
            raise aiohttp.ClientConnectionError(str(error)) from error


class _Response(aiohttp.ClientResponse):
    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """With a body that can be read on when its session is closed."""
        await super().start(connection)
        stream: Any = _Stream(self.content)
        self.content = stream
        return self

    async def json(self, **_: Any) -> Any:
        """What ``aiohttp`` does for an API that always answers in UTF-8."""
        parsed = orjson.loads(await self.read())
        if isinstance(parsed, dict):
            for each in parsed.get("items") or ():
                each.get("metadata", {}).pop("managedFields", None)
        return parsed
