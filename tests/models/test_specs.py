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
        ({"training": {"optim": "Adam W"}}, "spec.training.optim", "Adam W"),
        ({"distributed": {"strategy": "fsdp"}}, "spec.distributed.strategy", "fsdp"),
        ({"checkpoint": {"uri": "gs://bucket/a"}}, "spec.checkpoint.uri", "gs://bucket/a"),
    ],
    ids=[
        "word", "zero", "too-large", "too-small", "list", "pattern", "negative", "empty", "optimizer", "strategy",
        "store",
    ],
)  # fmt: skip
def test_errors_name_field_and_value(changes: dict[str, Any], field: str, value: str) -> None:
    """A spec that got past an older CRD becomes a condition, not a crash."""
    job = parse_job(_raw_job(a_job().with_spec(**changes).raw))
    assert job.spec is None
    assert job.spec_error.startswith(f"{field}: ")
    assert value in job.spec_error


@pytest.mark.parametrize(
    "uri",
    ["s3://abc", "s3://finetune/", "s3://finetune/a/b-c_d.e", "s3://a.b-c/checkpoints/", "s3://" + "b" * 63 + "/x"],
    ids=["bucket", "slash", "prefix", "dots", "longest-bucket"],
)
@pytest.mark.parametrize("role", ["checkpoint", "output"])
def test_buckets_are_locations(role: str, uri: str) -> None:
    """For what is written."""
    spec = a_job().with_bucket(role, uri, "store").spec()
    location = getattr(spec, role)
    assert (location.uri, location.secret_ref.name) == (uri, "store")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://ab", "s3://" + "b" * 64, "s3://Bucket", "s3:///a", "s3://bucket//a", "s3://bucket/a//b", "s3://bucket/..",
        "s3://bucket/a/../b", "s3://bucket/a..b", "s3://bu..ket/a", "s3://bucket/.a", "s3://bucket/a?x=1",
        "file:///etc", "gs://bucket", "hf://org/name", "bucket/a", "s3://key:secret@bucket/a", "s3://bucket/a\n",
        "s3://bucket/%2e%2e", "",
    ],
)  # fmt: skip
def test_other_uris_are_no_buckets(uri: str) -> None:
    """Nothing that leads elsewhere, or carries credentials."""
    with pytest.raises(ValidationError):
        a_job().with_bucket("checkpoint", uri).spec()


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize(
    "key",
    [
        "kubernetes.io/a", "app.kubernetes.io/name", "a.b.kubernetes.io/c", "k8s.io/a", "node.k8s.io/a",
        "kueue.x-k8s.io/queue-name", "jobset.x-k8s.io/a", "finetune-operator.io/job", "a.finetune-operator.io/b",
        "job-name", "controller-uid", "aadpodidbinding", "", "/a", "a/", "a/b/c", "A.example.org/b", "-a", "a b", "é",
        "a" * 64, "team\n",
    ],
)  # fmt: skip
def test_keys_of_others_are_refused(field: str, key: str) -> None:
    """Those of Kubernetes and of this operator, and what is no key at all."""
    with pytest.raises(ValidationError, match="podMetadata"):
        a_job().with_spec(podMetadata={field: {key: "x"}}).spec()


@pytest.mark.parametrize("value", ["a b", "é", "-a", "x" * 64, "a\n"])
def test_label_values_are_kubernetes(value: str) -> None:
    """Or the Job would be refused later."""
    with pytest.raises(ValidationError):
        a_job().with_spec(podMetadata={"labels": {"team": value}}).spec()


@pytest.mark.parametrize("key", ["team", "cost-center", "a_b.c", "notkubernetes.io/a", "kubernetes.io.example.org/a"])
def test_keys_of_ones_own_are_taken(key: str) -> None:
    """Similar names belong to somebody else."""
    assert a_job().with_spec(podMetadata={"labels": {key: ""}}).spec().pod_metadata.labels == {key: ""}


@pytest.mark.parametrize(
    "prefix",
    [
        "hf://", "s3://", "hf://org", "hf://org/", "hf://org/name", "hf://datasets/org/name/", "s3://bucket",
        "s3://bucket/{namespace}/", "s3://team-{namespace}/a/b", "s3://{namespace}", "hf://{namespace}/",
    ],
)  # fmt: skip
def test_prefixes_of_uris(prefix: str) -> None:
    """An organisation, a repository, a bucket and what is in it."""
    assert a_runtime(allowedUriPrefixes=[prefix]).allowed_uri_prefixes == [prefix]


@pytest.mark.parametrize(
    "prefix",
    [
        "", "s3:", "file:///mnt", "http://x", "hf://org/name@v1", "hf://datasets/a/b/c", "s3://b/../c", "s3://b//c",
        "s3://Bucket", "s3://b@c", "s3://b/{job}", "s3://b/%2e", "s3://b/a\n",
    ],
)  # fmt: skip
def test_texts_that_are_no_prefixes(prefix: str) -> None:
    """A prefix that could be read in two ways would allow what nobody meant."""
    with pytest.raises(ValidationError):
        a_runtime(allowedUriPrefixes=[prefix])


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(("fields", "alpha"), [({"r": 8}, 16), ({"r": 8, "loraAlpha": 4}, 4)], ids=["omitted", "set"])
def test_adapters_share_their_fields(method: str, fields: dict[str, Any], alpha: float) -> None:
    """QLoRA is LoRA on 4-bit weights."""
    job = a_job().with_lora(**fields) if method == "lora" else a_job().with_qlora(**fields)
    chosen = job.spec().method
    assert chosen is not None
    assert chosen.adapter is not None
    assert (chosen.chosen, chosen.adapter.resolved_alpha) == ([method], alpha)


def test_quantisation_defaults_to_nf4() -> None:
    """As the paper recommends; the storage format follows the strategy."""
    method = a_job().with_qlora().spec().method
    assert method is not None
    assert method.qlora is not None
    assert (method.qlora.quant_type, method.qlora.double_quant, method.qlora.quant_storage) == ("nf4", True, None)


def test_every_parameter_needs_no_adapter() -> None:
    """``full: {}``."""
    spec = a_job().with_full().spec()
    assert spec.method is not None
    assert (spec.method_name, spec.method.adapter) == ("full", None)


def test_error_texts_are_bounded() -> None:
    """The value may be a megabyte."""
    with pytest.raises(ValidationError) as caught:
        FineTuneJobSpec.model_validate(a_job().with_spec(runId="x" * 100_000).raw)
    assert len(describe_validation_error(caught.value, "spec")) < 500


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
    job = a_job().with_qlora(quantStorage="bfloat16").distributed(strategy="FSDP")
    spec = job.with_bucket("checkpoint", "s3://abc", "s").with_bucket("output", "s3://abc").spec().to_dict()
    assert list(violations(schema_of("finetunejobs")["properties"]["spec"], spec, "spec")) == []
    full = a_job().with_full().spec().to_dict()
    assert list(violations(schema_of("finetunejobs")["properties"]["spec"], full, "spec")) == []
    runtime = a_runtime(a_pool(tolerations=[{"key": "a", "operator": "Exists"}])).to_dict()
    assert list(violations(schema_of("finetuneruntimes")["properties"]["spec"], runtime, "spec")) == []
