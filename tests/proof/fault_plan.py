"""Which request meets which fault: drawn from a seed, so that a run that failed can be run again.

What a plan does to a request depends on the seed, on the request, and on how many requests of its kind came before:
requests of other jobs, or a pass more or less, do not change what the others meet.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from faulty_proxy import Fault, FaultyProxy

_STATUS = b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"%s","message":"injected","code":%d}'


def _refusal(status: int, reason: str, retry_after: int | None = None) -> Fault:
    return Fault("status", status, body=_STATUS % (reason.encode(), status), retry_after=retry_after)


ANSWERS = (
    _refusal(401, "Unauthorized"),
    _refusal(403, "Forbidden"),
    _refusal(409, "Conflict"),
    _refusal(422, "Invalid"),
    _refusal(429, "TooManyRequests", retry_after=1),
    _refusal(500, "InternalError"),
    _refusal(503, "ServiceUnavailable"),
    Fault("reset-before"),
    Fault("reset-after"),
    Fault("truncate"),
    Fault("delay", seconds=0.5),
    Fault("hang"),
)
"""What any request may meet."""

READS = (*ANSWERS, Fault("stale"))
LOSSLESS_WATCHES = (
    Fault("gone"),
    Fault("silent"),
    Fault("reset-before"),
    Fault("repeat-events"),
    Fault("delay-events", seconds=0.3),
    _refusal(500, "InternalError"),
)
"""What a watch may meet; it hears all of it in the end, or that it has to begin anew."""
LOSSY_WATCHES = (*LOSSLESS_WATCHES, Fault("drop-events"))
"""And what no watch ever notices: only a resync helps then."""
OF_WATCHES = "watch-"
"""The names of watches' faults begin with it."""
CUT_SECONDS = 0.5
"""One of the watches that are open ends after each of these, and another one begins, which may meet a fault."""
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|resourceVersion=\d+")


def kinds_of(met: Iterable[str]) -> Counter[str]:
    """How often each fault was met."""
    return Counter(fault.split(" for ")[0] for fault in met)


def every_kind() -> set[str]:
    """Names of all faults that plans choose from."""
    return {fault.name for fault in READS} | {OF_WATCHES + fault.name for fault in LOSSY_WATCHES}


@dataclass
class FaultPlan:
    """One seed."""

    seed: int
    share: float = 0.08
    """Of the requests that meet a fault …"""
    watch_share: float = 0.5
    """… and of the watches, of which there are a hundred times fewer."""
    drops_events: bool = True
    most: int = 40
    """Faults altogether: after so many the network is well."""
    met: list[str] = field(default_factory=list)
    """What was done to whom, in order; printed when a run fails."""

    def __post_init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def choose(self, method: str, path: str) -> Fault | None:
        """The fault of this request."""
        kind = f"{method} {_UID.sub('', path)}"
        with self._lock:
            self._counts[kind] += 1
            chance = random.Random(f"{self.seed}/{kind}/{self._counts[kind]}")
            is_watch = "watch=true" in path
            if len(self.met) >= self.most or chance.random() > (self.watch_share if is_watch else self.share):
                return None
            if is_watch:
                fault = chance.choice(LOSSY_WATCHES if self.drops_events else LOSSLESS_WATCHES)
            else:
                fault = chance.choice(READS if method == "GET" else ANSWERS)
            self.met.append(f"{OF_WATCHES if is_watch else ''}{fault.name} for {kind}")
            return fault


async def cut_watches(proxy: FaultyProxy, seconds: float, seed: int) -> None:
    """One after each of so many seconds."""
    chance = random.Random(seed)
    while True:
        await asyncio.sleep(seconds)
        proxy.cut_a_watch(chance)
