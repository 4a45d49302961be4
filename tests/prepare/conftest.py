"""Shared by the tests of the stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from prepare.makers import Workplace, a_model, chat, write_rows


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A good model and twenty good rows of four words and two, ten with the roles and colons of the template."""
    place = Workplace(tmp_path)
    a_model(place.model)
    write_rows(place.dataset, [chat(f"is row number {number}") for number in range(20)])
    return place
