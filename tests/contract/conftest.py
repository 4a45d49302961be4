"""Renders the chart with the real Helm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.binaries import bin_directory

CHART = Path(__file__).parents[2] / "charts/finetune-operator"
RELEASE = "ftop"
NAMESPACE = "finetune-system"

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, where PyYAML has it: the CRDs are long."""

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


def _find_helm() -> str | None:
    """The one that was built with the test cluster's other programs, else the one on PATH."""
    built = bin_directory() / "helm"
    return str(built) if built.exists() else shutil.which("helm")


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Helm; the caller looks at the exit code."""
    program = _find_helm()
    if program is None:
        pytest.skip("no helm on PATH or in the cache; `python -m e2e.cluster binaries` builds it")

    def run(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
        extra = ["--values", "-"] if values is not None else []
        return subprocess.run(
            [program, *arguments, *extra],
            input=None if values is None else yaml.safe_dump(values),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """Values -> manifests. Helm takes a second, so the same values are rendered once."""
    rendered: dict[str, str] = {}

    def run(values: Manifest | None = None) -> list[Manifest]:
        key = json.dumps(values, sort_keys=True)
        if key not in rendered:
            done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, values=values or {})
            assert done.returncode == 0, done.stderr
            rendered[key] = done.stdout
        return [manifest for manifest in yaml.load_all(rendered[key], Loader=LOADER) if manifest]

    return run
