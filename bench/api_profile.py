"""What the API server's CPU time goes to, from a profile that it takes of itself.

Samples are counted by the functions on their stacks, see https://github.com/google/pprof/blob/main/doc/README.md. The
profile is read by ``go tool pprof``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import aiohttp

from e2e.cluster.binaries import ensure_go

SECONDS = 20
"""For how long the server watches itself."""
OPERATORS = {
    "status of FineTuneJobs written": "serveStatus",
    "FineTuneJobs read": r"serveResource\.(GetResource|ListResource)",
    "Jobs and pods listed": "restfulListResource",
    "ConfigMaps and the rest read": "restfulGetResource",
}
"""What it does for the operator, and next to nothing for others …"""
GROUPS = {
    **OPERATORS,
    "everything created": "createHandler",
    "watches": r"WatchServer|cacher.*(dispatch|process|startCaching)",
    "pods and Jobs written by others": "restfulPatchResource|patchResource|patcher|restfulUpdateResource|core/pod",
    "garbage collected": "gcBgMark|gcAssist|bgsweep|bgscavenge",
}
"""… and what for all -> regular expression of functions that do nothing else."""
_ACCOUNTED = re.compile(r"nodes accounting for \S+, ([0-9.]+)% of ")


async def take_profile(session: aiohttp.ClientSession) -> bytes:
    """The server's answer, after ``SECONDS``."""
    async with session.get("/debug/pprof/profile", params={"seconds": str(SECONDS)}) as answer:
        answer.raise_for_status()
        return await answer.read()


def shares(profile: bytes) -> dict[str, float]:
    """Percent of the server's CPU time by what it does; the rest, e.g. TLS and who may do what, is missing."""
    with tempfile.NamedTemporaryFile(suffix=".pprof") as file:
        Path(file.name).write_bytes(profile)
        go = ensure_go()
        return {what: _share(go, file.name, functions) for what, functions in GROUPS.items()}


def _share(go: str, profile: str, functions: str) -> float:
    """Percent of the samples with one of these on their stack."""
    everything = ("-nodecount=1000000", "-nodefraction=0", "-edgefraction=0")
    command = [go, "tool", "pprof", "-top", *everything, f"-focus={functions}", profile]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = _ACCOUNTED.search(text)
    if found is None:
        raise ValueError(f"go tool pprof does not say how many samples have {functions} on their stack: {text[:500]}")
    return float(found[1])
