"""Why pods do not run yet, in others' words."""

from __future__ import annotations

import pytest

from finetune_operator.core.pod_trouble import describe_trouble
from makers import PodMaker, a_pod

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (a_pod(), ""),
        (a_pod().pending(), ""),
        (a_pod().waiting("ContainerCreating"), ""),
        (a_pod().unschedulable("0/3 nodes are available"), "finds no node: 0/3 nodes are available"),
        (a_pod().waiting("ImagePullBackOff", "not found"), "waits: ImagePullBackOff: not found"),
        (a_pod().waiting("CreateContainerConfigError"), "waits: CreateContainerConfigError"),
        (a_pod().exited(1), ""),
    ],
    ids=["runs", "pending", "starts", "no-node", "no-image", "no-words", "ended"],
)
def test_trouble_is_told_in_the_words_of_scheduler_and_kubelet(pod: PodMaker, expected: str) -> None:
    """Whoever starts as all pods do, runs or has ended has none."""
    built = pod.build()
    assert describe_trouble([built]) == (expected and f"pod {built.name} {expected}")


def test_the_first_pod_in_trouble_is_named() -> None:
    """One sentence for a gang of hundreds."""
    pods = [a_pod(0), a_pod(1).unschedulable("no room"), a_pod(2).waiting("ErrImagePull")]
    assert describe_trouble([pod.build() for pod in pods]).endswith("finds no node: no room")
