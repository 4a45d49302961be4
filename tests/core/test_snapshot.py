"""What a run is: its digest and its snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.core.snapshot import Snapshot, run_digest
from kstatus import kstatus
from makers import JobMaker, Story, a_job, a_pod, a_pool, a_runtime, a_snapshot, an_attempt_job, at, training

pytestmark = pytest.mark.unit

Change = Callable[[JobMaker], JobMaker]

SAME_RUN: dict[str, Change] = {
    "nodes": lambda job: job.on(nodes=3, gpusPerNode=2),
    "pool": lambda job: job.on(pool="spot"),
    "checkpoint-interval": lambda job: job.with_spec(checkpoint={"intervalSeconds": 1, "keep": 9}),
    "checkpoint-claim": lambda job: job.with_storage("elsewhere", "a/b"),
    "checkpoint-bucket": lambda job: job.with_bucket("checkpoint", "s3://finetune", "store"),
    "output": lambda job: job.with_output("adapters"),
    "output-bucket": lambda job: job.with_bucket("output", "s3://adapters", "store"),
    "strategy": lambda job: job.distributed(strategy="ZeRO3", cpuOffload=True),
    "suspend": lambda job: job.suspended(),
    "backoff-limit": lambda job: job.with_backoff_limit(0),
    "micro-batch": lambda job: job.with_training(perDeviceTrainBatchSize=1),
    "gradient-checkpointing": lambda job: job.with_training(gradientCheckpointing=True),
    "priority": lambda job: job.with_spec(priorityClassName="low"),
    "pod-metadata": lambda job: job.with_spec(podMetadata={"labels": {"a": "b"}, "annotations": {"c/d": "e"}}),
    "runtime": lambda job: job.with_spec(runtimeRef={"name": "other"}),
    "name": lambda job: job.named("other"),
}
OTHER_RUN: dict[str, Change] = {
    "model": lambda job: job.with_model("hf://org/name@main"),
    "model-revision": lambda job: job.with_spec(
        model={"persistentVolumeClaim": {"claimName": "models", "path": "tiny/v2"}}
    ),
    "dataset": lambda job: job.with_dataset(persistentVolumeClaim={"claimName": "datasets", "path": "x.jsonl"}),
    "max-length": lambda job: job.with_dataset(maxLength=128),
    "held-out": lambda job: job.with_dataset(evalFraction=0.2),
    "packing": lambda job: job.with_dataset(packing=True),
    "optimizer": lambda job: job.with_training(optim="adamw_torch_fused"),
    "qlora": lambda job: job.with_qlora(),
    "quant-type": lambda job: job.with_qlora(quantType="fp4"),
    "double-quant": lambda job: job.with_qlora(doubleQuant=False),
    "full": lambda job: job.with_full(),
    "rank": lambda job: job.with_lora(r=4),
    "target-modules": lambda job: job.with_lora(targetModules=["q_proj"]),
    "learning-rate": lambda job: job.with_training(learningRate=3.0e-4),
    "global-batch": lambda job: job.with_training(globalBatchSize=32),
    "steps": lambda job: job.with_training(maxSteps=9),
    "seed": lambda job: job.with_training(seed=1),
    "precision": lambda job: job.with_training(precision="fp32"),
    "evaluation": lambda job: job.with_spec(evaluation={"prompts": ["Why?"]}),
    "run-id": lambda job: job.with_run("2"),
}


@given(st.lists(st.sampled_from(sorted(SAME_RUN))))
def test_where_and_when_never_change_the_run(names: list[str]) -> None:
    """Any number of such edits in any order: the checkpoints still fit."""
    job = a_job()
    for name in names:
        job = SAME_RUN[name](job)
    assert run_digest(job.spec()) == run_digest(a_job().spec())


@pytest.mark.parametrize("name", sorted(OTHER_RUN))
@given(others=st.lists(st.sampled_from(sorted(SAME_RUN))))
def test_what_decides_the_result_always_changes_the_run(name: str, others: list[str]) -> None:
    """Whatever else is edited with it."""
    job = OTHER_RUN[name](a_job())
    for other in others:
        job = SAME_RUN[other](job)
    assert run_digest(job.spec()) != run_digest(a_job().spec())


def test_every_edit_makes_a_run_of_its_own() -> None:
    """No two of them collide."""
    digests = {run_digest(change(a_job()).spec()) for change in OTHER_RUN.values()}
    assert len(digests) == len(OTHER_RUN)


def test_written_defaults_are_the_same_run() -> None:
    """A user who writes out what would be taken anyway finds the same result."""
    written = a_job().with_lora(r=16, loraDropout=0, targetModules=["all-linear"]).with_training(seed=42)
    assert run_digest(written.spec()) == run_digest(a_job().spec())


def test_written_defaults_of_later_fields_are_the_same_run() -> None:
    """The API server writes them out for every job."""
    written = a_job().with_training(optim="adamw_torch").with_dataset(packing=False).distributed(cpuOffload=False)
    assert run_digest(written.spec()) == run_digest(a_job().spec())
    qlora = a_job().with_qlora(r=8)
    written = a_job().with_qlora(r=8, loraAlpha=16, quantType="nf4", doubleQuant=True)
    assert run_digest(written.spec()) == run_digest(qlora.spec())


def test_how_quantised_weights_lie_in_memory_is_no_other_run() -> None:
    """It follows the strategy, which may change from attempt to attempt."""
    written = a_job().with_qlora(quantStorage="bfloat16")
    assert run_digest(written.spec()) == run_digest(a_job().with_qlora().spec())


@pytest.mark.parametrize(
    ("job", "digest"),
    [
        (a_job(), "4101cd04b60317a02b8f129fc32f725a5894c3456149eb551d481fb1f4a6c829"),
        (
            a_job()
            .with_lora(r=8, loraDropout=0.05, targetModules=["q_proj"])
            .with_training(maxSteps=500, learningRate=1e-4)
            .with_dataset(evalFraction=0.1)
            .with_run("2"),
            "80fe0ad2dc4a507bbdef05a29a21aeab5e5426b8835e8b3dde028b9e27481bf0",
        ),
    ],
    ids=["minimal", "lora"],
)
def test_fields_that_came_later_left_older_runs_alone(job: JobMaker, digest: str) -> None:
    """The digests of the first version: their checkpoints and results are still found."""
    assert run_digest(job.spec()) == digest


def test_number_formats_are_the_same_run() -> None:
    """``32`` and ``32.0`` are one number."""
    assert run_digest(a_job().with_lora(loraAlpha=32).spec()) == run_digest(a_job().with_lora(loraAlpha=32.0).spec())


def test_digest_is_hexadecimal_sha256() -> None:
    """It names folders."""
    digest = run_digest(a_job().spec())
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")


def test_snapshot_survives_its_config_map() -> None:
    """What is read back is what was accepted."""
    runtime = a_runtime(a_pool(spot=True, nodeSelector={"a": "b"}), env=[{"name": "X", "value": "é"}])
    snapshot = a_snapshot(a_job().with_lora(r=8).on(nodes=2), runtime)
    assert Snapshot.from_json(snapshot.to_json()) == snapshot


def test_snapshot_of_an_older_operator_is_read() -> None:
    """Without the fields that came later its run goes on, unbounded as it was, and has not drifted."""
    raw = json.loads(a_snapshot().to_json())
    for name in ("allowedPriorityClassNames", "allowedPodMetadataPrefixes"):
        del raw["runtime"][name]
    del raw["spec"]["podMetadata"]
    assert Snapshot.from_json(json.dumps(raw)) == a_snapshot()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"digest": 1}'], ids=["empty", "object", "list", "types"])
def test_text_that_is_no_snapshot_is_refused(text: str) -> None:
    """Never half a run."""
    with pytest.raises(ValueError):
        Snapshot.from_json(text)


def test_snapshot_keeps_a_hand_made_digest() -> None:
    """A newer operator with more defaults must not give a running job another identity."""
    snapshot = a_snapshot().model_copy(update={"digest": "f" * 64})
    assert Snapshot.from_json(snapshot.to_json()).digest == "f" * 64


def test_writing_a_default_out_is_no_other_run() -> None:
    """loraAlpha 2r, three epochs and no held-out part are what omitting them means."""
    omitted = FineTuneJobSpec.model_validate(_SPEC)
    written = FineTuneJobSpec.model_validate(
        {
            **_SPEC,
            "dataset": {**_SPEC["dataset"], "evalFraction": 0},
            "method": {"lora": {"r": 8, "loraAlpha": 16}},
            "training": {"numTrainEpochs": 3},
        }
    )

    assert run_digest(omitted) == run_digest(written)


_SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/model"},
    "dataset": {"uri": "hf://datasets/org/data/train.jsonl"},
    "method": {"lora": {"r": 8}},
}


# --- a snapshot that does not parse -------------------------------------------------------------------------------


def _unreadable(job: JobMaker | None = None) -> Story:
    story = training()
    story.job, story.snapshot = (job or a_job()).with_status(story.status), None
    story.sees(at(20), jobs=(an_attempt_job(),), pods=(a_pod().exited(1),), snapshot_error="digest: Field required")
    return story


@pytest.mark.parametrize("job", [a_job(), a_job().with_lora(r=2)], ids=["same-spec", "edited-spec"])
def test_unreadable_snapshot_is_said_and_nothing_is_touched(job: JobMaker) -> None:
    """Its pods may be doing well; an edit in the meantime does not give the run up."""
    story = _unreadable(job)
    assert story.condition("Stalled") == ("True", "SnapshotUnreadable")
    assert kstatus(story.status, 1) == "Failed"
    for word in ("ConfigMap support-run", "digest: Field required", "delete it"):
        assert word in story.status.message
    (event,) = story.actions.events
    assert event.message.startswith("left everything as it was: ConfigMap support-run could not be read (digest: Field")
    assert (story.created(), story.deleted()) == ([], [])


def test_run_goes_on_when_its_snapshot_can_be_read_again() -> None:
    """Restored, or taken again from the unchanged spec."""
    story = _unreadable()
    story.snapshot = a_snapshot()
    story.sees(at(30), jobs=(an_attempt_job(),), pods=(a_pod(),))
    assert story.condition("Stalled") == ("False", "Training")


def test_a_new_run_removes_an_unreadable_snapshot() -> None:
    """The other way out."""
    story = _unreadable(a_job().with_run("2"))
    story.sees(at(30), snapshot_error="digest: Field required")
    assert story.deleted() == ["ConfigMap/support-run"]
