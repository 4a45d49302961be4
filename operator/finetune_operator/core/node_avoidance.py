"""Nodes that the next attempts keep away from: few, for a while, and only where others are free.

It is a preference and never a requirement: a pool in which every node has failed once must still run the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_operator.api.status import AvoidedNode
from finetune_operator.constants import Cause

AVOID_SECONDS = 1800
MAX_AVOIDED = 4

CAUSES = frozenset({Cause.NODE_LOST, Cause.NO_DEVICE})
"""Ends that say something about the node. One that was reclaimed was well until then. A hang is reported by whoever
waits, and that is seldom the rank that stands still: which node is guilty is not known."""


def after_end(avoided: Sequence[AvoidedNode], cause: str, node: str, now: datetime) -> list[AvoidedNode]:
    """The list after an attempt ended with ``cause`` on ``node``; the oldest entries give way."""
    kept = [item for item in avoided if item.until > now and item.name != node]
    if cause in CAUSES and node:
        kept.append(AvoidedNode(name=node, until=now + timedelta(seconds=AVOID_SECONDS)))
    return kept[-MAX_AVOIDED:]


def names(avoided: Sequence[AvoidedNode], now: datetime) -> list[str]:
    """Those to keep away from now."""
    return [item.name for item in avoided if item.until > now]
