"""A thin client: paths and JSON in and out, errors of ``errors.py`` out.

It rides on ``kubernetes.aio`` for configuration, TLS and token refresh, and skips its typed models: parsing them
doubles the CPU time and memory of the operator, and every pass reads only a few fields.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import getproxies

import aiohttp
import orjson
from kubernetes.aio import client, config

from finetune_operator.errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    Forbidden,
    Invalid,
    KubernetesError,
    NotFound,
    Unavailable,
)
from finetune_operator.shell.metrics import NO_ANSWER, Metrics

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
MOST_CONNECTIONS = 100

Json = dict[str, Any]

_JSON = "application/json, */*"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}
"""HTTP's words -> Kubernetes'."""


class Kube:
    """One connection pool to the API server."""

    def __init__(self, api: client.ApiClient, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics

    @classmethod
    async def connect(cls, metrics: Metrics) -> Kube:
        """In a pod by its service account, elsewhere by the kubeconfig.

        Raises:
            ConfigError: there is neither.
        """
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            try:
                await config.load_kube_config(client_configuration=configuration)
            except (config.ConfigException, OSError) as error:
                raise ConfigError(f"no cluster: not in a pod, and no kubeconfig ({error}); set KUBECONFIG") from error
        api = client.ApiClient(configuration)
        api.rest_client.pool_manager = _session(api)
        return cls(api, metrics)

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        """Read an object or a list, as new as the API server has it."""
        return _parse(await self._call("GET", path, query))

    async def get_metadata(self, path: str, query: Mapping[str, str]) -> Json:
        """Read a list of which nothing but ``metadata`` is wanted: the API server leaves out the rest."""
        return _parse(await self._call("GET", path, query, accept=_METADATA_LIST))

    async def pages(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Json]:
        """A long list in the pieces that ``limit`` asks for, all of the same version."""
        page = await self.get(path, query)
        yield page
        while following := page["metadata"].get("continue"):
            page = await self.get(path, {**query, "continue": following})
            yield page

    async def get_text(self, path: str, query: Mapping[str, str], *, seconds: float) -> str:
        """Read something that is not JSON, e.g. a log."""
        return (await self._call("GET", path, query, seconds=seconds)).decode(errors="replace")

    async def create(self, path: str, body: Json) -> Json:
        """POST to a collection; raises ``AlreadyExists``."""
        return _parse(await self._call("POST", path, body=body))

    async def replace(self, path: str, body: Json) -> Json:
        """PUT; with ``metadata.resourceVersion`` in the body it raises ``Conflict`` when the object has changed."""
        return _parse(await self._call("PUT", path, body=body))

    async def delete(self, path: str, body: Json, query: Mapping[str, str] | None = None) -> None:
        """DELETE with ``DeleteOptions``; with a selector as query everything in a collection that it selects."""
        await self._call("DELETE", path, query, body=body)

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Json | None = None,
        seconds: float = REQUEST_SECONDS,
        accept: str = _JSON,
    ) -> bytes:
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Accept": accept, "Content-Type": "application/json"}
        begun, code = time.monotonic(), NO_ANSWER
        try:
            _, url, sent, _, _ = await self._api.param_serialize(
                method, target, header_params=headers, auth_settings=["BearerToken"]
            )
            limit = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
            response = await self._api.call_api(method, url, sent, body=body, _request_timeout=limit)
            content: bytes = await response.read()
            code = str(response.status)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            self._metrics.request_ended(_VERBS[method], code, time.monotonic() - begun)
        if response.status >= 400:
            raise _error(method, path, response.status, content, response.headers.get("Retry-After"))
        return content


def _session(api: client.ApiClient) -> aiohttp.ClientSession:
    """As ``kubernetes.aio`` makes it, which would read ``.netrc`` and the environment at every request."""
    connector = aiohttp.TCPConnector(limit=MOST_CONNECTIONS, ssl=api.rest_client.ssl_context)
    return aiohttp.ClientSession(connector=connector, trust_env=bool(getproxies()))


def _parse(content: bytes) -> Json:
    parsed: Json = orjson.loads(content)
    return parsed


def _error(method: str, path: str, status: int, content: bytes, retry_after: str | None) -> KubernetesError:
    try:
        answer = orjson.loads(content)
        reason, text = answer.get("reason", ""), answer.get("message", "")
    except (ValueError, AttributeError):
        reason, text = "", content[:200].decode(errors="replace")
    message = f"{method} {path}: {status} {reason}: {text}"
    if status == 404:
        return NotFound(message, status)
    if status == 409:
        return (AlreadyExists if reason == "AlreadyExists" else Conflict)(message, status)
    if status in (401, 403):
        return Forbidden(message, status)
    if status == 429 or status >= 500:
        return Unavailable(message, status, float(retry_after) if retry_after and retry_after.isdigit() else None)
    return Invalid(message, status)


_COLLECTIONS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Service": "/api/v1/namespaces/{}/services",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/api/v1/namespaces/{}/events",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "FineTuneJob": "/apis/finetune-operator.io/v1alpha1/namespaces/{}/finetunejobs",
}
RUNTIMES = "/apis/finetune-operator.io/v1alpha1/finetuneruntimes"
"""Path of the only collection that has no namespaces."""


def collection(kind: str, namespace: str) -> str:
    """Path of a namespaced collection."""
    return _COLLECTIONS[kind].format(quote(namespace))


def listing(kind: str, namespace: str) -> str:
    """Path of a collection in a namespace; empty: over all of them."""
    return collection(kind, namespace) if namespace else _COLLECTIONS[kind].replace("/namespaces/{}", "")


def item(kind: str, namespace: str, name: str) -> str:
    """Path of a namespaced object."""
    return f"{collection(kind, namespace)}/{quote(name)}"


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is gone."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
