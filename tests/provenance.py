"""What a measurement was made on: the commit of the checkout, to be written beside it."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNKNOWN = "unknown"
_RECORDS = "docs"
"""What measurements write themselves, and nothing that they measure."""


def current_commit(checkout: Path = ROOT) -> str:
    """Its short hash, with ``+`` where something is not committed; ``unknown`` without git or its history."""
    commit = _git(checkout, "rev-parse", "--short=7", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", ".", f":(exclude){_RECORDS}")
    if not commit or changes is None:
        return UNKNOWN
    return commit + ("+" if changes else "")


def made_on(*rows: Mapping[str, Any]) -> str:
    """``on 831c0f2``; of several commits how many rows each, most first: ``39 on 831c0f2, 2 on 1234567+``."""
    found = Counter(row.get("commit", UNKNOWN) for row in rows).most_common()
    names = {commit: f"on {commit if commit != UNKNOWN else 'a commit that was not recorded'}" for commit, _ in found}
    if len(found) == 1:
        return names[found[0][0]]
    return ", ".join(f"{count} {names[commit]}" for commit, count in found)


def _git(checkout: Path, *arguments: str) -> str | None:
    """None: there is no git, or it says no."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
