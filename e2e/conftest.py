"""One real cluster with two nodes and the operator, for all end-to-end tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.jobs import Jobs
from e2e.stack import ROOT, Stack, bring_up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests run in the order they are written, after everything cheaper."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The cluster; kept alive afterwards with FTOP_E2E_KEEP=1, so that the next run starts in seconds."""
    if os.geteuid() != 0:
        pytest.skip("end-to-end tests need root: they start containerd and kubelets")
    name = os.environ.get("FTOP_E2E_CLUSTER", "ftop-e2e")
    stack = bring_up(name)
    try:
        _add_tiny_model(stack)
        yield stack
    finally:
        if os.environ.get("FTOP_E2E_KEEP") != "1":
            stack.cluster.down()


@pytest.fixture
def jobs(stack: Stack) -> Iterator[Jobs]:
    """Creates FineTuneJobs and removes them at the end of the test."""
    jobs = Jobs(stack)
    yield jobs
    jobs.remove_all()


def _add_tiny_model(stack: Stack) -> None:
    """A random model of 0.1 M parameters and a small dataset: for tests of what happens around the training."""
    from trainer.tiny import make_model, make_rows

    folder = stack.models / "tiny"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(exist_ok=True)
        make_model(folder)
        for path in folder.iterdir():
            path.chmod(0o644)
    rows = "".join(json.dumps(row) + "\n" for row in make_rows(120))
    (stack.datasets / "tiny.jsonl").write_text(rows)
    broken = Path(ROOT / "examples" / "data" / "harbour.jsonl").read_text().splitlines()
    broken[16] = '{"messages": [{"role": "user", "content": "What is a reef?"}'
    (stack.datasets / "broken.jsonl").write_text("\n".join(broken) + "\n")
