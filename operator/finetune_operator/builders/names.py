"""Deterministic names of children: whoever creates one twice meets the first."""

from __future__ import annotations

import hashlib


def snapshot_name(job: str) -> str:
    """The ConfigMap with what the run was accepted with."""
    return f"{job}-run"


def prepare_name(job: str) -> str:
    """The Job of the CPU stage."""
    return f"{job}-prepare"


def attempt_name(job: str, number: int) -> str:
    """The Job and the Service of an attempt. With 45 characters of name it stays a hostname."""
    return f"{job}-a{number}"


def config_name(workload: str, config: str) -> str:
    """The ConfigMap that the pods of a Job mount, named by its content.

    A kubelet keeps an immutable ConfigMap for as long as any of its pods refers to the name. When a FineTuneJob is
    deleted and applied again, or runs anew, a ConfigMap of the same name and another content would show the new pods
    the old one.
    """
    return f"{workload}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"
