"""The rules of kstatus (sigs.k8s.io/cli-utils) for a custom resource, restated.

``helm --wait``, Flux and others decide by them whether a resource is done. Only what can apply to a FineTuneJob is
here.
"""

from __future__ import annotations

from finetune_operator.api.status import FineTuneJobStatus


def kstatus(status: FineTuneJobStatus, generation: int) -> str:
    """``InProgress``, ``Failed`` or ``Current``."""
    if status.observed_generation != generation:
        return "InProgress"
    for condition in status.conditions:
        if condition.type == "Reconciling" and condition.status == "True":
            return "InProgress"
        if condition.type == "Stalled" and condition.status == "True":
            return "Failed"
    for condition in status.conditions:
        if condition.type == "Ready" and condition.status != "True":
            return "InProgress"
    return "Current"


def is_sound(status: FineTuneJobStatus) -> bool:
    """Whether no two conditions contradict each other."""
    true = {condition.type for condition in status.conditions if condition.status == "True"}
    pairs = (("Reconciling", "Stalled"), ("Complete", "Failed"), ("Complete", "Stalled"), ("Running", "Complete"))
    return not any(set(pair) <= true for pair in pairs) and "Ready" not in true
