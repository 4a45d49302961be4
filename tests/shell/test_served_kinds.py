"""A kind that kopf missed is watched all the same."""

from __future__ import annotations

from typing import Any

import kopf
import pytest
from kopf._cogs.structs.references import Insights, Resource

from finetune_operator import constants
from finetune_operator.errors import NotFound
from finetune_operator.shell import served_kinds
from finetune_operator.shell.kube import Kube

pytestmark = pytest.mark.unit


class Discovery(Kube):
    """An API server that has these kinds of our group."""

    def __init__(self, *plurals: str) -> None:
        self.plurals = plurals
        self.asked = 0

    async def get(self, path: str, query: Any = None) -> Any:
        """Discovery; a group without kinds does not exist."""
        assert path == f"/apis/{constants.API_VERSION}"
        self.asked += 1
        if not self.plurals:
            raise NotFound(path, 404)
        return {"resources": [{"name": name} for plural in self.plurals for name in (plural, f"{plural}/status")]}


def _watching(*plurals: str) -> Insights:
    group, version = constants.GROUP, constants.VERSION
    return Insights(watched_resources={Resource(group=group, version=version, plural=plural) for plural in plurals})


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that kopf was told to look at again."""
    groups: list[str] = []

    async def look(*, raw_event: Any, **_: Any) -> None:
        groups.append(raw_event["object"]["spec"]["group"])

    monkeypatch.setattr(served_kinds, "process_discovered_resource_event", look)
    return groups


async def test_nothing_is_asked_while_all_kinds_are_watched(looks: list[str]) -> None:
    """The usual case costs no request."""
    discovery = Discovery(*served_kinds.KINDS)
    await served_kinds.serve_what_is_there(discovery, _watching(*served_kinds.KINDS), kopf.OperatorSettings())
    assert (discovery.asked, looks) == (0, [])


async def test_kind_that_is_there_and_not_watched_makes_kopf_look_again(looks: list[str]) -> None:
    """Its CRD came back, and discovery was late."""
    discovery = Discovery(*served_kinds.KINDS)
    await served_kinds.serve_what_is_there(discovery, _watching(constants.RUNTIME_PLURAL), kopf.OperatorSettings())
    assert looks == [constants.GROUP]


@pytest.mark.parametrize("there", [(), (constants.RUNTIME_PLURAL,)], ids=["no-crd", "one-crd"])
async def test_kind_that_is_not_there_is_waited_for(looks: list[str], there: tuple[str, ...]) -> None:
    """kopf would only complain once more."""
    await served_kinds.serve_what_is_there(Discovery(*there), _watching(*there), kopf.OperatorSettings())
    assert looks == []
