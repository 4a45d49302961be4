"""The CRDs: the models, ``crds/`` and the chart say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_operator.api.crd import crds, render

ROOT = Path(__file__).parents[2]
FOLDERS = {"repository": ROOT / "crds", "chart": ROOT / "charts/finetune-operator/files/crds"}

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS.keys())
def test_the_files_are_what_the_models_generate(folder: Path) -> None:
    """An edit of a model without `make generate` fails here, and so does an edit of a generated file."""
    expected = {name: render(crd) for name, crd in crds().items()}
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == expected, (
        "run `make generate` (python -m finetune_operator.api.crd crds charts/finetune-operator/files/crds)"
    )
