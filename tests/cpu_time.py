"""What the processes of a benchmark cost, read from ``/proc``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

THIS = "client"
"""The process that asks."""


def cpu_seconds_of(pid: int | str) -> float:
    """CPU time of a process so far, of the user and of the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_seconds_by_program() -> Counter[str]:
    """Of the processes that this one has started, by name of the program, and of itself."""
    result = Counter({THIS: cpu_seconds_of("self")})
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in listing.read_text().split():
            program, *arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = arguments[1] if arguments[:1] == ["-m"] else Path(program).name
            result[name] += cpu_seconds_of(pid)
    return result
