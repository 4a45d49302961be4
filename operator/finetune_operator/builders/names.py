"""Deterministic names of children: whoever creates one twice meets the first."""

from __future__ import annotations


def snapshot_name(job: str) -> str:
    """The ConfigMap with what the run was accepted with."""
    return f"{job}-run"


def prepare_name(job: str) -> str:
    """The Job of the CPU stage."""
    return f"{job}-prepare"


def config_name(child: str, run: str) -> str:
    """The ConfigMap of a stage. A later run reuses names of children, but must never meet an older configuration."""
    return f"{child}-{run[:8]}"


def attempt_name(job: str, number: int) -> str:
    """The Job and the Service of an attempt. With 45 characters of name it stays a hostname."""
    return f"{job}-a{number}"
