"""Shared, read-only assets of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trainer.tiny import EVAL_ROWS, ROWS, Assets, make_model, make_rows, write_rows
from trainer.zygote import Zygote


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """A tiny model and dataset."""
    folder = tmp_path_factory.mktemp("assets")
    make_model(folder / "model")
    return Assets(
        model=folder / "model",
        train_uri=write_rows(folder / "train.jsonl", make_rows(ROWS)),
        eval_uri=write_rows(folder / "eval.jsonl", make_rows(EVAL_ROWS, offset=100)),
    )


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Launches without the imports."""
    process = Zygote()
    yield process
    process.close()
