"""How the watch showed each training pod last: evidence that is gone from the API server before a pass can read it.

An evicted pod shows its final state for half a second. A pass reads for itself and decides from that; what a watch
showed is used for pods that a fresh list does not have any more, and never brings one back. After a restart there is
nothing here, and such pods are judged by what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator import constants
from finetune_operator.core.observed import Pod, own_pods
from finetune_operator.shell.object_key import ObjectKey


class LastSeen:
    """Pods by job and uid."""

    def __init__(self) -> None:
        self._pods: dict[ObjectKey, dict[str, Pod]] = {}

    def note(self, key: ObjectKey, raw: Mapping[str, Any]) -> None:
        """An event of the watch."""
        for pod in own_pods([raw]):
            if pod.stage == constants.STAGE_TRAIN:
                self._pods.setdefault(key, {})[pod.uid] = pod

    def known(self, key: ObjectKey) -> tuple[Pod, ...]:
        """To be asked before a list is read: a pod that is made while the list is under way has not vanished."""
        return tuple(self._pods.get(key, {}).values())

    def forget(self, key: ObjectKey) -> None:
        """The job is gone."""
        self._pods.pop(key, None)

    def jobs(self) -> int:
        """How many jobs it knows something about."""
        return len(self._pods)

    def forget_before(self, key: ObjectKey, attempt: int) -> None:
        """Attempts before this one are over and settled."""
        pods = self._pods.get(key, {})
        for uid in [uid for uid, pod in pods.items() if pod.attempt < attempt]:
            del pods[uid]
