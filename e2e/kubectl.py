"""kubectl for tests and the demo: what a user would type, with JSON in and out."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]

COMMAND_SECONDS = 60.0


class KubectlError(RuntimeError):
    """kubectl said no; the text is its standard error."""


class WaitError(AssertionError):
    """Something did not become true in time; the text holds what was seen last."""


class Kubectl:
    """One cluster and namespace."""

    def __init__(self, kubeconfig: Path, binary: Path | str = "kubectl", namespace: str = "default") -> None:
        self.kubeconfig = kubeconfig
        self.binary = str(binary)
        self.namespace = namespace

    def in_namespace(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return Kubectl(self.kubeconfig, self.binary, namespace)

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run and return standard output.

        Raises:
            KubectlError: it exited with an error, or took longer than a minute.
        """
        command = [self.binary, "--namespace", self.namespace, *arguments]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, env=environment, timeout=COMMAND_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"{' '.join(arguments)} took longer than {COMMAND_SECONDS:.0f} s") from error
        if done.returncode != 0:
            raise KubectlError(done.stderr.strip())
        return done.stdout

    def apply(self, *manifests: Json) -> None:
        """``kubectl apply``."""
        self.run("apply", "-f", "-", stdin=_list(manifests))

    def create(self, *manifests: Json, dry_run: bool = False) -> None:
        """``kubectl create``; with ``dry_run`` the server only judges."""
        self.run("create", *(["--dry-run=server"] if dry_run else []), "-f", "-", stdin=_list(manifests))

    def get(self, kind: str, name: str) -> Json:
        """One object; raises ``KubectlError`` when there is none."""
        parsed: Json = json.loads(self.run("get", kind, name, "-o", "json"))
        return parsed

    def find(self, kind: str, name: str) -> Json | None:
        """One object, or None."""
        text = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, selector: str = "") -> list[Json]:
        """All objects of a kind, by label."""
        items: list[Json] = json.loads(self.run("get", kind, "-o", "json", "-l", selector))["items"]
        return items

    def delete(self, kind: str, name: str, *, wait: bool = False) -> None:
        """``kubectl delete``."""
        self.run("delete", kind, name, f"--wait={str(wait).lower()}", "--ignore-not-found")

    def patch(self, kind: str, name: str, patch: Json, *, subresource: str = "") -> None:
        """A merge patch."""
        extra = [f"--subresource={subresource}"] if subresource else []
        self.run("patch", kind, name, "--type=merge", *extra, "-p", json.dumps(patch))

    def evict(self, pod: str) -> None:
        """What ``kubectl drain`` does to one pod."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))

    def wait_for(
        self,
        kind: str,
        name: str,
        condition: Callable[[Json], bool],
        *,
        seconds: float,
        what: str,
        every: float = 0.5,
    ) -> Json:
        """Poll one object until ``condition`` holds.

        Raises:
            WaitError: not within ``seconds``; shows the object's status.
        """
        deadline = time.monotonic() + seconds
        seen: Json | None = None
        while time.monotonic() < deadline:
            seen = self.find(kind, name)
            if seen is not None and condition(seen):
                return seen
            time.sleep(every)
        status = json.dumps((seen or {}).get("status"), indent=1)
        raise WaitError(f"{kind}/{name}: {what}: not within {seconds:.0f} s; status: {status}")


def wait_until(probe: Callable[[], Any], seconds: float, what: str) -> None:
    """Poll until ``probe`` says yes.

    Raises:
        WaitError: not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise WaitError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.2)


def condition(item: Json, type_: str) -> Json:
    """The condition of a FineTuneJob, empty when it was never set."""
    conditions = item.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == type_), {})


def is_true(item: Json, type_: str) -> bool:
    """Whether a condition is True."""
    return condition(item, type_).get("status") == "True"


def counts(item: Json) -> tuple[int, dict[str, int], int]:
    """Attempts, ended attempts by cause, and failures that count against the backoff limit."""
    totals = item["status"]["totals"]
    return totals["attempts"], totals["byCause"], totals["failures"]


def _list(manifests: tuple[Json, ...]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
