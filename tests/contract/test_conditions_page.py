"""docs/conditions.md explains every name that a status can hold, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_operator.constants import Cause, ConditionType, Reason

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[2] / "docs" / "conditions.md"


def names_of(constants: type) -> list[str]:
    """What a class of constants defines."""
    return sorted(value for name, value in vars(constants).items() if name.isupper())


def documented(column: str) -> list[str]:
    """The names in the first column of the table that begins with this one; a row may explain two."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    next(line for line in lines if line.startswith(f"| {column} |"))
    next(lines)
    names = []
    for line in lines:
        if not line.startswith("|"):
            break
        names += line.split("|")[1].replace("`", "").split(",")
    return sorted(name.strip() for name in names)


@pytest.mark.parametrize(
    ("column", "constants"),
    [("condition", ConditionType), ("reason", Reason), ("cause", Cause)],
    ids=["conditions", "reasons", "causes"],
)
def test_each_name_is_documented_once_and_nothing_else_is(column: str, constants: type) -> None:
    """Somebody who reads one in a status looks it up there."""
    assert documented(column) == names_of(constants)
