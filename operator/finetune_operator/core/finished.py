"""A finished run: its status stays, its pods and their logs stay, but nothing of it runs on.

When one pod ended the run for good, its peers may still wait for it, or for a node. Deleting their Job here, and not in
the pass that recorded the end, repeats it until it has worked.
"""

from __future__ import annotations

from finetune_operator.core.actions import Deletion
from finetune_operator.core.draft import Draft


def release_nodes(draft: Draft) -> None:
    """Delete every Job that has a live pod, or waits in a queue to get one; the others keep their pods' logs."""
    alive = {(pod.stage, pod.attempt) for pod in draft.observed.pods if not pod.is_terminal}
    for job in draft.observed.jobs:
        if ((job.stage, job.attempt) in alive or job.is_suspended) and not job.is_being_deleted:
            draft.delete(Deletion("Job", job.name, job.uid))
