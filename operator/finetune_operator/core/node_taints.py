"""Taints by which others say that a node goes: an autoscaler, a cloud, an administrator.

Only those that stand for a decision that has been made. That a node might go (``DeletionCandidateOfClusterAutoscaler``,
``aws-node-termination-handler/rebalance-recommendation``), or that it is of a kind that may
(``kubernetes.azure.com/scalesetpriority``), explains nothing.
"""

from __future__ import annotations

RECLAIM_TAINTS = frozenset(
    {
        # kubernetes/autoscaler, cluster-autoscaler/utils/taints: before it drains a node that it removes
        "ToBeDeletedByClusterAutoscaler",
        # kubernetes-sigs/karpenter, pkg/apis/v1/taints.go: before it drains, also after a spot interruption
        "karpenter.sh/disrupted",
        # aws/aws-node-termination-handler, pkg/node/node.go
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/asg-lifecycle-termination",
        # GoogleCloudPlatform/k8s-node-termination-handler: preemption and host maintenance
        "cloud.google.com/impending-node-termination",
        # AKS, node auto-drain: scheduled events such as the preemption of a spot node
        "remediator.kubernetes.azure.com/unschedulable",
    }
)
"""The node is being taken away."""

OUT_OF_SERVICE_TAINT = "node.kubernetes.io/out-of-service"
"""An administrator says that the machine is down and nothing runs there any more."""
