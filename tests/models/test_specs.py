"""Specs: what parses, what is taken when a field is omitted, and errors that name field and value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.shell.gather import describe_validation_error, parse_job
from makers import a_job, a_pool, a_runtime
from openapi import schema_of, violations

pytestmark = pytest.mark.unit


def _raw_job(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "n", "name": "j", "uid": "u", "resourceVersion": "1", "generation": 3},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"training": {"learningRate": "fast"}}, "spec.training.learningRate", "fast"),
        ({"training": {"globalBatchSize": 0}}, "spec.training.globalBatchSize", "0"),
        ({"method": {"lora": {"r": 4096}}}, "spec.method.lora.r", "4096"),
        ({"dataset": {"maxLength": 4}}, "spec.dataset.maxLength", "4"),
        ({"placement": [{"nodes": 2, "gpusPerNode": 17}]}, "spec.placement.0.gpusPerNode", "17"),
        ({"runId": "a b"}, "spec.runId", "a b"),
        ({"checkpoint": {"intervalSeconds": -1}}, "spec.checkpoint.intervalSeconds", "-1"),
        ({"evaluation": {"prompts": [""]}}, "spec.evaluation.prompts.0", "''"),
    ],
    ids=["word", "zero", "too-large", "too-small", "list", "pattern", "negative", "empty"],
)
def test_errors_name_field_and_value(changes: dict[str, Any], field: str, value: str) -> None:
    """A spec that got past an older CRD becomes a condition, not a crash."""
    job = parse_job(_raw_job(a_job().with_spec(**changes).raw))
    assert job.spec is None
    assert job.spec_error.startswith(f"{field}: ")
    assert value in job.spec_error


def test_error_texts_are_bounded() -> None:
    """The value may be a megabyte."""
    with pytest.raises(ValidationError) as caught:
        FineTuneJobSpec.model_validate(a_job().with_spec(runId="x" * 100_000).raw)
    assert len(describe_validation_error(caught.value)) < 500


def test_twelve_lines_are_enough() -> None:
    """Model, dataset and method; everything else has a default."""
    spec = a_job().spec()
    assert spec.runtime_ref.name == "default"
    assert (spec.placement[0].nodes, spec.placement[0].gpus_per_node) == (1, 1)
    assert spec.backoff_limit == 3
    assert not spec.suspend


@pytest.mark.parametrize("quantity", ["8Gi", 8, "500m", "1.5"], ids=["binary", "bare-number", "milli", "fraction"])
def test_quantities_may_be_numbers_or_texts(quantity: object) -> None:
    """As everywhere in Kubernetes."""
    pool = a_runtime(a_pool(cpuPerGpu=quantity)).pools[0]
    assert pool.cpu_per_gpu == str(quantity)


@pytest.mark.parametrize("quantity", ["8 GB", "-1", "1e3", "lots"], ids=["unit", "negative", "exponent", "word"])
def test_quantities_that_are_none_are_refused(quantity: str) -> None:
    """Before a pod is refused because of them."""
    with pytest.raises(ValidationError):
        a_runtime(a_pool(memoryPerGpu=quantity))


def test_what_the_models_write_is_what_the_crd_accepts() -> None:
    """A spec that went through the models with all defaults filled in still fits the schema."""
    spec = a_job().on(pool="default", nodes=2).with_storage("s", "a/b").with_output("o").spec().to_dict()
    assert list(violations(schema_of("finetunejobs")["properties"]["spec"], spec, "spec")) == []
    runtime = a_runtime(a_pool(tolerations=[{"key": "a", "operator": "Exists"}])).to_dict()
    assert list(violations(schema_of("finetuneruntimes")["properties"]["spec"], runtime, "spec")) == []
