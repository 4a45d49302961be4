"""What an API server was asked to write, by whom: its audit log, with the body of every status of a FineTuneJob."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = ["create", "update", "patch", "delete", "deletecollection"]
_QUIET_SECONDS = 1.0


def audit_policy(users: Sequence[str]) -> dict[str, Any]:
    """Writes of these users; the rest would be a hundred times as much."""
    statuses = {"group": "finetune-operator.io", "resources": ["finetunejobs/status"]}
    rule = {"users": list(users), "verbs": _WRITES}
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "RequestResponse", "resources": [statuses], **rule},
            {"level": "Metadata", **rule},
            {"level": "None"},
        ],
    }


@dataclass(frozen=True)
class Write:
    """One request, whatever its answer."""

    verb: str
    resource: str
    """Plural, with the subresource: ``finetunejobs/status``."""
    name: str
    code: int
    body: dict[str, Any]
    """Of a status, else empty."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.name} ({self.code}) {self.body.get('status', {}).get('message', '')}"


class AuditLog:
    """The file that the API server writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def writes(self, user: str, namespace: str) -> list[Write]:
        """In their order, once no more are coming: a request is logged after it is answered."""
        found = self._read(user, namespace)
        while True:
            time.sleep(_QUIET_SECONDS)
            before, found = found, self._read(user, namespace)
            if found == before:
                return found

    def _read(self, user: str, namespace: str) -> list[Write]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        events = (json.loads(line) for line in lines)
        return [
            _parse(event)
            for event in events
            if event["user"]["username"] == user and event.get("objectRef", {}).get("namespace") == namespace
        ]


def _parse(event: dict[str, Any]) -> Write:
    ref = event["objectRef"]
    subresource = f"/{ref['subresource']}" if "subresource" in ref else ""
    return Write(
        verb=event["verb"],
        resource=ref["resource"] + subresource,
        name=ref.get("name", ""),
        code=event["responseStatus"]["code"],
        body=event.get("requestObject", {}),
    )
