"""A model and a dataset from the Hub: fetched by prepare, pinned to a commit, read by ranks that are offline."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.hub.server import LocalHub
from e2e.jobs import Jobs, tiny_training
from e2e.kubectl import is_true
from e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PORT = 18181


@pytest.fixture
def hub(stack: Stack, tmp_path: Path) -> Iterator[str]:
    """A server of the Hub's file layout on this machine; returns its URL as pods see it."""
    from trainer.tiny import make_rows

    shutil.copytree(stack.models / "tiny", tmp_path / "acme" / "tiny")
    rows = tmp_path / "datasets" / "acme" / "rows"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(40)))
    server = LocalHub(tmp_path, host="0.0.0.0", port=PORT)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://host.finetune.internal:{PORT}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def test_a_job_from_the_hub_completes_and_its_lineage_names_the_commit(stack: Stack, jobs: Jobs, hub: str) -> None:
    """HF_ENDPOINT comes from the runtime; the revision is resolved once and recorded with the adapter."""
    runtime = stack.kubectl.get("ftr", "default")
    spec = {**runtime["spec"], "env": [{"name": "HF_ENDPOINT", "value": hub}]}
    stack.kubectl.apply(
        {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneRuntime",
            "metadata": {"name": "hub"},
            "spec": spec,
        }
    )
    jobs.create(
        "from-the-hub",
        runtimeRef={"name": "hub"},
        model={"uri": "hf://acme/tiny"},
        dataset={"uri": "hf://datasets/acme/rows/train.jsonl", "evalFraction": 0.1, "maxLength": 128},
        training=tiny_training(maxSteps=3, globalBatchSize=8),
    )

    job = jobs.wait_for_end("from-the-hub", seconds=150)

    assert is_true(job, "Complete"), job["status"]["message"]
    revision = job["status"]["facts"]["model"]["revision"]
    assert len(revision) == 40
    manifest = json.loads((jobs.output(job) / "manifest.json").read_text())
    assert manifest["baseModel"]["sourceUri"] == "hf://acme/tiny"
    assert manifest["baseModel"]["revision"] == revision
