"""Shared, read-only assets of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trainer.tiny import Assets, make_assets
from trainer.zygote import Zygote


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """A tiny model and dataset."""
    return make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Launches without the imports."""
    process = Zygote()
    yield process
    process.close()
