"""Deterministic names of children: whoever creates one twice meets the first."""

from __future__ import annotations


def snapshot_name(job: str) -> str:
    """The ConfigMap with what the run was accepted with."""
    return f"{job}-run"


def prepare_name(job: str) -> str:
    """The Job and the ConfigMap of the CPU stage."""
    return f"{job}-prepare"


def attempt_name(job: str, number: int) -> str:
    """The Job, the Service and the ConfigMap of an attempt. With 45 characters of name it stays a hostname."""
    return f"{job}-a{number}"
