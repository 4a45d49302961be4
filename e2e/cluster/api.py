"""A few requests to the API server with the standard library: `up` needs no client package."""

from __future__ import annotations

import json
import ssl
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from e2e.cluster.addresses import API_PORT
from e2e.cluster.errors import ApiError

Json = dict[str, Any]

PLURALS = {
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "PersistentVolume": "persistentvolumes",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Namespace": "namespaces",
}


class Api:
    """The API server of one cluster, as its administrator."""

    def __init__(self, host: str, pki: Path) -> None:
        self._host = host
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def request(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """One request; the answer is parsed when it is JSON."""
        connection = HTTPSConnection(self._host, API_PORT, timeout=10, context=self._tls)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": kind} if payload else {})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 400:
            raise ApiError(answer.status, _message(text))
        return json.loads(text) if text.startswith("{") else text

    def apply(self, obj: Json) -> None:
        """Create or update an object (server-side apply: the same call twice changes nothing)."""
        kind = "application/apply-patch+yaml"
        self.request("PATCH", f"{object_path(obj)}?fieldManager=e2e-cluster&force=true", obj, kind)

    def nodes(self) -> dict[str, Json]:
        items = self.request("GET", "/api/v1/nodes")["items"]
        return {item["metadata"]["name"]: item for item in items}

    def ready(self) -> bool:
        return bool(self.request("GET", "/readyz") == "ok")


def _message(text: str) -> str:
    """What a Status object says, or the text itself."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]


def object_path(obj: Json) -> str:
    """The URL path of one object."""
    version, metadata = obj["apiVersion"], obj["metadata"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    space = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{space}/{PLURALS[obj['kind']]}/{metadata['name']}"


def is_ready(node: Json) -> bool:
    """Whether a Node object says Ready=True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
