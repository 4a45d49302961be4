"""A drain of one pod by a client that has a session with the API server; with kubectl it is ``Kubectl.evict``."""

from __future__ import annotations

import aiohttp


async def evict(session: aiohttp.ClientSession, namespace: str, pod: str) -> bool:
    """Ask a pod to go; False: it has gone already."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    async with session.post(path, json=eviction) as answer:
        assert answer.status in (201, 404), await answer.text()
        return answer.status == 201
