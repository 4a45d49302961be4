"""What kopf is told."""

from __future__ import annotations

import kopf
import pytest
from kopf._cogs.structs.references import Resource

from finetune_operator.config import OperatorConfig
from finetune_operator.constants import JOB_LABEL
from finetune_operator.shell.handlers import configure

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "resource",
    [
        Resource(group="batch", version="v1", plural="jobs", kind="Job", namespaced=True),
        Resource(group="", version="v1", plural="pods", kind="Pod", namespaced=True),
    ],
    ids=["jobs", "pods"],
)
def test_only_our_children_are_watched(resource: Resource) -> None:
    """The API server filters: a cluster's other pods cost the operator nothing."""
    settings = kopf.OperatorSettings()
    configure(settings, OperatorConfig())

    assert set(settings.watching.label_selectors.collect(resource)) == {JOB_LABEL}


def test_a_restricted_operator_does_not_look_around() -> None:
    """It may not list namespaces."""
    settings = kopf.OperatorSettings()
    configure(settings, OperatorConfig(namespaces=("team",)))

    assert settings.scanning.disabled
