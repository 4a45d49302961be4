"""The examples are what the API server and the checks accept, and show what they say they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.runtime import FineTuneRuntimeSpec
from finetune_operator.core.checks import first_violation
from finetune_operator.core.planner.plan import plan_attempt
from makers import JobMaker, a_pool, a_runtime, a_snapshot, observed
from openapi import schema_of, violations

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    (path.stem, document)
    for path in sorted(EXAMPLES.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    if document.get("apiVersion", "").startswith("finetune-operator.io/")
]
TENANCY = (ROOT / "docs/tenancy.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
DOCUMENTS.append(("tenancy", yaml.safe_load(TENANCY)))
LARGE = a_runtime(a_pool(device="cuda", nodes=4, gpusPerNode=8))
JOBS = [pytest.param(doc, id=name) for name, doc in DOCUMENTS if doc["kind"] == "FineTuneJob"]


@pytest.mark.parametrize("document", [pytest.param(doc, id=f"{name}-{doc['kind']}") for name, doc in DOCUMENTS])
def test_example_fits_the_schema(document: dict[str, Any]) -> None:
    """Unknown fields, which would be pruned in silence, too."""
    plural = document["kind"].lower() + "s"
    assert list(violations(schema_of(plural)["properties"]["spec"], document["spec"], "spec")) == []
    model = FineTuneJobSpec if plural == "finetunejobs" else FineTuneRuntimeSpec
    model.model_validate(document["spec"])


@pytest.mark.parametrize("document", JOBS)
def test_example_passes_the_checks(document: dict[str, Any]) -> None:
    """On a runtime that is large enough."""
    assert first_violation(observed(JobMaker(document["spec"]), runtime=LARGE)) is None


@pytest.mark.parametrize(
    ("name", "method", "strategy"), [("qlora-fsdp-s3", "qlora", "FSDP"), ("lora-zero3", "lora", "ZeRO3")]
)
def test_example_shows_what_its_name_says(name: str, method: str, strategy: str) -> None:
    """Method and strategy."""
    spec = next(doc["spec"] for found, doc in DOCUMENTS if found == name and doc["kind"] == "FineTuneJob")
    job = JobMaker(spec)
    plan = plan_attempt(a_snapshot(job, LARGE), None)
    assert (job.spec().method_name, plan.strategy) == (method, strategy)
