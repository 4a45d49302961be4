"""The HTTP session of kopf's watches. It parses the long listings with which they begin, and is otherwise kopf's own.

The standard library takes seconds for thousands of pods, in which the event loop stands still, and several times the
memory. A third of each object is ``managedFields``, which nobody here looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import aiohttp
import kopf
import orjson


@dataclass(frozen=True, kw_only=True)
class WatchSession(kopf.AiohttpSession):
    """Two of the same credentials are equal: kopf does not try again what the API server has refused."""

    credentials: kopf.ConnectionInfo
    aiohttp_session: aiohttp.ClientSession = field(compare=False)


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
        credentials=credentials,
        aiohttp_session=session,
    )


class _Response(aiohttp.ClientResponse):
    async def json(self, **_: Any) -> Any:
        """What ``aiohttp`` does for an API that always answers in UTF-8."""
        parsed = orjson.loads(await self.read())
        if isinstance(parsed, dict):
            for each in parsed.get("items") or ():
                each.get("metadata", {}).pop("managedFields", None)
        return parsed
