"""What an API server was asked to write, by whom: its audit log, with the bodies of statuses and of new Jobs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = ["create", "update", "patch", "delete", "deletecollection"]
_QUIET_SECONDS = 1.0


def audit_policy(users: Sequence[str]) -> dict[str, Any]:
    """Writes of these users; the rest would be a hundred times as much."""
    statuses = {"group": "finetune-operator.io", "resources": ["finetunejobs/status"]}
    jobs = {"group": "batch", "resources": ["jobs"]}
    rule = {"users": list(users), "verbs": _WRITES}
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "RequestResponse", "resources": [statuses], **rule},
            {"level": "Request", "resources": [jobs], "users": list(users), "verbs": ["create"]},
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
    """Of a status and of a new Job, else empty."""

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


class Creations:
    """How often each Job was made for its owner, counted from where the count stopped the last time."""

    def __init__(self, log: AuditLog) -> None:
        self._path = log.path
        self._read: dict[int, int] = {}
        """Inode of a file -> its bytes that were read: the API server begins a new one after 100 MB."""
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def more_than_one(self) -> list[tuple[str, str, int]]:
        """Name of the owner and of the Job, and how many of it, where there was more than one."""
        for line in self._lines():
            event = json.loads(line)
            ref, code = event["objectRef"], event.get("responseStatus", {}).get("code")
            if (event["verb"], ref["resource"], code) == ("create", "jobs", 201):
                meta = event["requestObject"]["metadata"]
                self._counts.update((owner["uid"], owner["name"], meta["name"]) for owner in meta["ownerReferences"])
        return [(owner, job, count) for (_, owner, job), count in self._counts.items() if count > 1]

    def _lines(self) -> Iterator[bytes]:
        """Those that are whole."""
        for path in self._path.parent.glob(f"{self._path.stem}*{self._path.suffix}"):
            with path.open("rb") as file:
                inode = path.stat().st_ino
                file.seek(self._read.get(inode, 0))
                for line in file:
                    if line.endswith(b"\n"):
                        self._read[inode] = self._read.get(inode, 0) + len(line)
                        yield line


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
