"""Names, locations and quantities of what is created."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.api.job import NAME_LIMIT
from finetune_operator.api.status import FactsStatus
from finetune_operator.builders.attempt import build_attempt, train_config
from finetune_operator.builders.locations import mounts_of, public_uri
from finetune_operator.builders.names import attempt_name, prepare_name, snapshot_name
from finetune_operator.builders.pod import multiply_quantity, train_resources
from finetune_operator.builders.prepare import build_prepare, prepare_config
from finetune_operator.core.planner.plan import plan_attempt
from makers import JobMaker, a_job, a_pool, a_runtime, a_snapshot, facts, packed_facts
from pod_security import restricted_violations

pytestmark = pytest.mark.unit

LONGEST = "j" * NAME_LIMIT
HOSTNAME_LIMIT = 63


def _attempt(job: JobMaker, number: int = 1, **runtime: Any) -> list[dict[str, Any]]:
    snapshot = a_snapshot(job, a_runtime(**runtime))
    return build_attempt(job.build(), snapshot, facts(), plan_attempt(snapshot, facts()), number)


def test_names_of_the_longest_job_are_hostnames() -> None:
    """Index 1023 of attempt 9999999."""
    names = [
        snapshot_name(LONGEST),
        prepare_name(LONGEST),
        attempt_name(LONGEST, 9_999_999),
        f"{attempt_name(LONGEST, 9_999_999)}-1023",
    ]
    assert all(len(name) <= HOSTNAME_LIMIT for name in names)


def test_labels_of_the_longest_job_are_valid() -> None:
    """At most 63 characters each."""
    for item in _attempt(a_job().named(LONGEST), 9_999_999):
        assert all(len(value) <= 63 for value in item["metadata"]["labels"].values())


def test_configuration_of_another_run_has_another_name() -> None:
    """It is immutable and outlives its run: the next one must not read it."""
    one, two = (_attempt(a_job().with_run(run))[0]["metadata"]["name"] for run in ("1", "2"))
    assert one != two


def test_ranks_find_each_other_by_the_service_of_their_attempt() -> None:
    """``<job>-a<n>-0.<job>-a<n>``; the selector leaves other attempts out."""
    config, service, job = _attempt(a_job().on(nodes=2), 7)
    assert '"masterAddress": "support-a7-0.support-a7"' in config["data"]["config.json"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"] == "support-a7"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["selector"]["finetune-operator.io/attempt"] == "7"


def test_one_pod_per_node() -> None:
    """Of an attempt; two attempts may meet on a node for a moment."""
    job = _attempt(a_job().on(nodes=2))[2]
    affinity = job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["finetune-operator.io/attempt"] == "1"


def test_one_failure_leaves_the_peers_alone() -> None:
    """Per index, not per Job: the evidence stays."""
    spec = _attempt(a_job().on(nodes=2))[2]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["backoffLimitPerIndex"] == 0
    assert "backoffLimit" not in spec
    assert "podFailurePolicy" not in spec
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_no_pod_waits_long_for_a_lost_node(stage: str) -> None:
    """Kubernetes' default is 300 s."""
    job = build_prepare(a_job().build(), a_snapshot())[1] if stage == "prepare" else _attempt(a_job())[2]
    tolerations = job["spec"]["template"]["spec"]["tolerations"]
    assert [(item["key"], item["tolerationSeconds"]) for item in tolerations] == [
        ("node.kubernetes.io/not-ready", 30),
        ("node.kubernetes.io/unreachable", 30),
    ]


def test_only_queue_labels_are_copied() -> None:
    """Onto the Job, which queues look at."""
    labels = {"kueue.x_k8s.io__queue_name": "a", "team": "b"}
    job = _attempt(a_job().labelled(**labels))[2]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "a"
    assert "team" not in job["metadata"]["labels"]
    assert "suspend" not in job["spec"]


def test_prepare_is_not_retried_for_what_only_the_user_can_mend() -> None:
    """64 and 65 fail the Job; disruptions do not count."""
    spec = build_prepare(a_job().build(), a_snapshot())[1]["spec"]
    user, disruption = spec["podFailurePolicy"]["rules"]
    assert (user["action"], user["onExitCodes"]["values"]) == ("FailJob", [64, 65])
    assert disruption["action"] == "Ignore"


def test_the_operators_environment_wins() -> None:
    """A runtime's env cannot move HOME of prepare, nor let training pods ask the Hub."""
    job = _attempt(a_job(), env=[{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "X", "value": "y"}])[2]
    env = {item["name"]: item["value"] for item in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["X"] == "y"


@pytest.mark.parametrize(
    ("quantity", "factor", "expected"),
    [
        ("32Gi", 8, "256Gi"),
        ("500m", 8, "4000m"),
        ("1024Ki", 2, "2048Ki"),
        ("4", 8, "32"),
        ("1.5Gi", 2, "3Gi"),
        ("1.5", 1, "1.5"),
        ("0.1", 3, "0.3"),
        ("100", 10, "1000"),
    ],
    ids=["binary", "milli", "kibi", "bare", "fraction-to-integer", "fraction", "no-binary-fractions", "no-exponent"],
)
def test_quantities_are_multiplied_exactly(quantity: str, factor: int, expected: str) -> None:
    """As a person would write it."""
    assert multiply_quantity(quantity, factor) == expected


@given(st.from_regex(r"^[0-9]{1,6}(\.[0-9]{1,4})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", fullmatch=True), st.integers(1, 16))
def test_multiplied_quantities_are_quantities(quantity: str, factor: int) -> None:
    """What the pattern of the field accepts."""
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", multiply_quantity(quantity, factor))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ({"device": "cuda"}, {"nvidia.com/gpu": "2"}),
        ({"device": "cpu"}, {}),
        ({"device": "cuda", "resourceName": "nvidia.com/mig-1g.10gb"}, {"nvidia.com/mig-1g.10gb": "2"}),
        ({"device": "cpu", "resourceName": "example.org/slot"}, {"example.org/slot": "2"}),
    ],
    ids=["cuda", "cpu", "mig", "cpu-with-resource"],
)
def test_each_process_gets_a_device(pool: dict[str, str], expected: dict[str, str]) -> None:
    """As a limit, which extended resources need; memory is limited, CPU only requested."""
    resources = train_resources(a_runtime(a_pool(**pool)).pools[0], 2)
    assert resources["limits"] == {"memory": "64Gi", **expected}
    assert resources["requests"] == {"cpu": "8", "memory": "64Gi", **expected}


def test_claims_are_mounted_by_role() -> None:
    """What is only read is mounted read-only."""
    job = (
        a_job()
        .with_storage("s")
        .with_output("o")
        .with_dataset(eval={"persistentVolumeClaim": {"claimName": "e", "path": "eval.jsonl"}})
    )
    mounts = {item["name"]: item for item in mounts_of(a_snapshot(job)).volume_mounts()}
    assert {name: item["readOnly"] for name, item in mounts.items()} == {
        "model": True, "dataset": True, "eval": True, "storage": False, "output": False,
    }  # fmt: skip
    assert mounts["storage"]["mountPath"] == "/mnt/finetune/storage"


@pytest.mark.parametrize(
    ("job", "checkpoints", "outputs"),
    [
        (a_job(), "file:///mnt/finetune/storage/checkpoints", "file:///mnt/finetune/storage/output"),
        (a_job().with_output("o"), "file:///mnt/finetune/storage/checkpoints", "file:///mnt/finetune/output"),
        (a_job().with_bucket("checkpoint", "s3://ccc/p/"), "s3://ccc/p", "file:///mnt/finetune/storage/output"),
        (a_job().with_bucket("output", "s3://ooo"), "file:///mnt/finetune/storage/checkpoints", "s3://ooo"),
        (a_job().with_bucket("checkpoint", "s3://ccc").with_output("o"), "s3://ccc", "file:///mnt/finetune/output"),
    ],
    ids=["runtime-storage", "output-claim", "checkpoint-bucket", "output-bucket", "bucket-and-claim"],
)
def test_checkpoints_and_results_lie_where_the_job_says(job: JobMaker, checkpoints: str, outputs: str) -> None:
    """Both stages agree; the cache stays on the volume of the storage."""
    snapshot = a_snapshot(job)
    config = train_config(job.build(), snapshot, facts(), plan_attempt(snapshot, facts()), 1)
    prepared = prepare_config(job.build(), snapshot, mounts_of(snapshot))
    assert config.checkpoint.uri == f"{checkpoints}/research/support/{snapshot.digest}/{facts().dataset.digest}"
    assert config.output.uri.startswith(f"{outputs}/research/support/")
    assert prepared.output_uri == f"{outputs}/research/support"
    assert prepared.cache_uri == "file:///mnt/finetune/storage/cache"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (packed_facts(31), ("file:///mnt/finetune/storage/cache/data/" + "2" * 64 + "/packs.json", 31, 31)),
        (facts(), (None, None, 216)),
        (facts(trainPacks=31), (None, None, 216)),
        (facts(packsUri="file:///x", trainPacks=0), (None, None, 216)),
    ],
    ids=["packed", "not", "half", "none"],
)
def test_packs_reach_the_trainer_whole_or_not_at_all(
    found: FactsStatus, expected: tuple[str | None, int | None, int]
) -> None:
    """Facts come from a pod and are not trusted to fit together."""
    snapshot = a_snapshot(a_job().with_dataset(packing=True))
    data = train_config(a_job().build(), snapshot, found, plan_attempt(snapshot, found), 1).data
    assert (data.packs_uri, data.train_packs, data.train_items) == expected
    assert data.longest_row_tokens == 74


@pytest.mark.parametrize("packing", [True, False])
def test_prepare_is_told_to_pack(packing: bool) -> None:
    """It lays the rows."""
    snapshot = a_snapshot(a_job().with_dataset(packing=packing))
    assert prepare_config(a_job().build(), snapshot, mounts_of(snapshot)).packing is packing


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///mnt/finetune/storage/output/a", "pvc://finetune-storage/output/a"),
        ("file:///mnt/finetune/model", "pvc://models"),
        ("file:///mnt/finetune/storage-of-others/a", "file:///mnt/finetune/storage-of-others/a"),
        ("hf://org/name", "hf://org/name"),
        ("s3://finetune/checkpoints/a", "s3://finetune/checkpoints/a"),
    ],
    ids=["below", "root", "other-folder", "hub", "bucket"],
)
def test_status_names_places_that_exist_outside_the_pod(uri: str, expected: str) -> None:
    """``pvc://<claim>/<path>``."""
    assert public_uri(a_snapshot(), uri) == expected


@given(number=st.integers(1, 10**6), nodes=st.integers(1, 4), gpus=st.integers(1, 2), batch=st.integers(1, 1000))
def test_resolved_batch_arithmetic_reaches_the_trainer(number: int, nodes: int, gpus: int, batch: int) -> None:
    """Whatever the topology, the global batch is the user's."""
    job = a_job().on(nodes=nodes, gpusPerNode=gpus).with_training(globalBatchSize=batch)
    snapshot = a_snapshot(job)
    config = train_config(job.build(), snapshot, facts(), plan_attempt(snapshot, facts()), number)
    training = config.training
    capacity = training.per_device_train_batch_size * training.gradient_accumulation_steps * config.topology.world_size
    assert training.global_batch_size == batch
    assert 0 <= capacity - batch < training.per_device_train_batch_size * config.topology.world_size


def test_checker_sees_what_is_not_restricted() -> None:
    """A checker that finds nothing proves nothing."""
    bare = {"hostNetwork": True, "containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}
    assert len(restricted_violations(bare)) == 6
