"""Who of a gang's pods is there, and which of them is to blame when the gang cannot go on. Pure.

Every pod's launcher keeps one roll. What it is told (a beat, a closed connection, a worker's end, a goodbye)
arrives with the time at which it happened, so silence can be tested without waiting for it. A pod is judged only
after it was heard for the first time: pods of a gang start minutes apart, and the rendezvous limit covers that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.outcome import CAUSES

BEAT_SECONDS = 3.0
SILENCE_SECONDS = 12.0
"""Four missed beats: a pod that is quiet for so long is lost, also when no FIN ever came."""
GRACE_SECONDS = 1.0
"""Between a closed connection and its verdict: for a goodbye that is in flight, or for a new connection."""
VICTIM_SECONDS = 10.0
"""How long workers may run on beside a pod that is a victim itself: the cause is still to be named."""
ORDERLY_SECONDS = 12.0
"""How long workers may run on when a peer has stopped in order: rank 0 may be saving what they all agreed on."""
LOST_SECONDS = 1.0
"""How long workers may run on when a peer is lost: they may have a cause of their own, but none can go on."""

How = Literal["silent", "closed", "missing"]
_HOW: dict[How, str] = {
    "silent": f"not been heard of for {SILENCE_SECONDS:g} s",
    "closed": "gone away without a word",
    "missing": "never come",
}


@dataclass(frozen=True)
class Loss:
    """Why the gang cannot go on, where another pod is the reason."""

    node: int
    rank: int
    """Global rank that ended, or the first rank of a pod that was lost as a whole."""
    message: str
    patience: float
    """Seconds that the workers of this pod may still take to end by themselves."""
    is_cause: bool = True
    """False where the peer is a victim itself."""


@dataclass
class _Peer:
    heard_at: float | None = None
    closed_at: float | None = None
    is_accounted: bool = False
    """It said goodbye, a worker of it failed, or it is lost."""
    has_left: bool = False
    is_lost: bool = False


class Roll:
    """What one launcher knows of the others."""

    def __init__(self, node: int, nodes: int, processes_per_node: int) -> None:
        """``node`` is our own. Node 0 hears all others; the others hear node 0 and are told of the rest."""
        self._node = node
        self._per_node = processes_per_node
        self._peers = {peer: _Peer() for peer in range(nodes) if peer != node}
        self._judged_at: float | None = None
        self.loss: Loss | None = None
        """The first cause; before one is known, the first victim."""

    def knows(self, node: int, rank: int | None = None) -> bool:
        """Whether this is a peer's number, and the rank one of its ranks."""
        return node in self._peers and (rank is None or rank // self._per_node == node)

    def is_gone(self, node: int) -> bool:
        """Whether nothing is expected of it any more: it said goodbye, or is lost."""
        return node != self._node and (self._peers[node].has_left or self._peers[node].is_lost)

    def heard(self, node: int, now: float) -> None:
        """A peer gave a sign of life."""
        peer = self._peers[node]
        peer.heard_at, peer.closed_at = now, None

    def closed(self, node: int, now: float) -> None:
        """The connection to a peer is gone."""
        self._peers[node].closed_at = now

    def ended(self, node: int, rank: int, code: int) -> None:
        """A worker of a peer failed; ``code`` as a shell would say it."""
        self._peers[node].is_accounted = True
        cause = CAUSES.get(code)
        text = f"rank {rank} (node {node}) ended with {code}" + (f" ({cause})" if cause else "")
        if code == ExitCode.PEER_LOST:
            self._note(Loss(node, rank, text, VICTIM_SECONDS, is_cause=False))
        else:
            self._note(Loss(node, rank, text, ORDERLY_SECONDS if code == ExitCode.PREEMPTED else LOST_SECONDS))

    def left(self, node: int, code: int) -> None:
        """A peer said goodbye; a failure it had not told of yet counts as its first rank's."""
        peer = self._peers[node]
        if code != ExitCode.OK and not peer.is_accounted:
            self.ended(node, node * self._per_node, code)
        peer.is_accounted = peer.has_left = True

    def lost(self, node: int, how: How) -> None:
        """A peer is lost, as judged here or by launcher 0."""
        peer = self._peers[node]
        peer.is_accounted = peer.is_lost = True
        first, count = node * self._per_node, self._per_node
        who = f"rank {first}" if count == 1 else f"ranks {first}-{first + count - 1}"
        verb = "has" if count == 1 else "have"
        self._note(Loss(node, first, f"{who} (node {node}) {verb} {_HOW[how]}", LOST_SECONDS))

    def judge(self, now: float) -> list[tuple[int, How]]:
        """Call it often; the peers that are lost as of now, each told once."""
        self._forgive_own_sleep(now)
        verdicts: list[tuple[int, How]] = []
        for node, peer in self._peers.items():
            if peer.heard_at is None or peer.has_left or peer.is_lost:
                continue
            if peer.closed_at is not None and now - peer.closed_at >= GRACE_SECONDS:
                verdicts.append((node, "closed"))
            elif now - peer.heard_at >= SILENCE_SECONDS:
                verdicts.append((node, "silent"))
        for node, how in verdicts:
            self.lost(node, how)
        return verdicts

    def judge_missing(self) -> list[tuple[int, How]]:
        """The rendezvous failed: peers that ought to have been heard here, but never were, are the cause."""
        expected = self._peers if self._node == 0 else [0]
        missing = [node for node in expected if self._is_missing(node)]
        for node in missing:
            self.lost(node, "missing")
        return [(node, "missing") for node in missing]

    @property
    def is_settled(self) -> bool:
        """Whether waiting longer cannot tell us more about why the gang ended."""
        if self.loss is not None and self.loss.is_cause:
            return True
        if self._node != 0:
            return self._peers[0].has_left
        return all(peer.is_accounted for peer in self._peers.values())

    def _is_missing(self, node: int) -> bool:
        peer = self._peers[node]
        return peer.heard_at is None and not peer.is_accounted

    def _note(self, loss: Loss) -> None:
        if self.loss is None or (loss.is_cause and not self.loss.is_cause):
            self.loss = loss

    def _forgive_own_sleep(self, now: float) -> None:
        """When this process was frozen, what the others said meanwhile still waits to be read."""
        slept = now - self._judged_at if self._judged_at is not None else 0.0
        self._judged_at = now
        if slept < BEAT_SECONDS:
            return
        for peer in self._peers.values():
            peer.heard_at = None if peer.heard_at is None else max(peer.heard_at, now - BEAT_SECONDS)
            peer.closed_at = None if peer.closed_at is None else now
