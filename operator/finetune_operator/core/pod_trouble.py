"""Why pods do not run yet, in the words of the scheduler and the kubelet."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.core.observed import NORMAL_WAITING, Pod


def describe_trouble(pods: Sequence[Pod]) -> str:
    """The first pod's trouble, or nothing when all is well."""
    for pod in pods:
        if pod.is_terminal:
            continue
        if pod.unschedulable_message:
            return f"pod {pod.name} finds no node: {pod.unschedulable_message}"
        if pod.waiting_reason not in NORMAL_WAITING:
            return f"pod {pod.name} waits: {pod.waiting_reason}: {pod.waiting_message}".rstrip(": ")
    return ""
