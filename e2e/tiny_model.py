"""A random model of 0.1 M parameters and a small dataset: for tests of what happens around the training."""

from __future__ import annotations

import json

from e2e.stack import Stack
from trainer.tiny import make_model, make_rows


def add_tiny_model(stack: Stack) -> None:
    """Both onto the claims of a cluster, readable by the trainer's user."""
    folder = stack.models / "tiny"
    if not (folder / "model.safetensors").exists():
        folder.mkdir(exist_ok=True)
        make_model(folder)
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)
    rows = "".join(json.dumps(row) + "\n" for row in make_rows(120))
    (stack.datasets / "tiny.jsonl").write_text(rows)
