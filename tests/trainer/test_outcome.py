"""From exceptions and worker ends to the pod's one last word."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_trainer.config_file import load_train_config
from finetune_trainer.errors import ConfigError, NoCudaError, PeerLostError
from finetune_trainer.evaluation import Measurement
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.gang import Exit
from finetune_trainer.launcher import conclude
from finetune_trainer.messages import CheckpointRef, MemoryPicture, TrainTermination, fit_termination_message
from finetune_trainer.outcome import Handoff, describe
from finetune_trainer.roll import Loss
from trainer.tiny import Assets, a_config

pytestmark = pytest.mark.unit

DistStoreError = type("DistStoreError", (RuntimeError,), {})
DistBackendError = type("DistBackendError", (RuntimeError,), {})
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        pytest.param(OutOfMemoryError("CUDA out of memory"), 77, "OutOfMemory", id="torch"),
        pytest.param(RuntimeError("CUDA error: out of memory"), 77, "OutOfMemory", id="driver"),
        pytest.param(MemoryError(), 77, "OutOfMemory", id="host"),
        pytest.param(OSError(errno.ENOMEM, "Cannot allocate memory"), 77, "OutOfMemory", id="fork"),
        pytest.param(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            77,
            "OutOfMemory",
            id="host-tensor",
        ),
        pytest.param(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 77, "OutOfMemory", id="cublas"),
        pytest.param(
            DistBackendError("NCCL error: unhandled cuda error; Cuda failure 2 'out of memory'"),
            77,
            "OutOfMemory",
            id="nccl-out-of-memory",
        ),
        pytest.param(ConfigError("spec.x", 1, "must be 2", "set 2"), 64, "UserError", id="config"),
        pytest.param(NoCudaError("no device"), 69, "NoCuda", id="no-device"),
        pytest.param(PeerLostError("gone"), 76, "PeerLost", id="peer"),
        pytest.param(DistBackendError("ncclRemoteError: a remote process exited"), 76, "PeerLost", id="nccl"),
        pytest.param(
            RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), 76, "PeerLost", id="gloo"
        ),
        pytest.param(
            DistStoreError("Timed out after 4 seconds waiting for clients. 1/2 clients joined."),
            76,
            "PeerLost",
            id="rendezvous",
        ),
        pytest.param(DistBackendError("ncclInvalidUsage"), 1, "Application", id="nccl-misused"),
        pytest.param(KeyError("weights"), 1, "Application", id="bug"),
    ],
)
def test_what_an_exception_means(error: Exception, code: int, cause: str) -> None:
    """The exit code and the cause's name."""
    outcome = describe(error)

    assert (outcome.exit_code, outcome.cause) == (code, cause)


def test_a_bad_field_is_named_in_the_jobs_words(assets: Assets, tmp_path: Path) -> None:
    """Not as a path in our own configuration file."""
    config = a_config(assets, tmp_path)
    config["training"]["learningRate"] = -1
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ConfigError) as caught:
        load_train_config(tmp_path / "config.json")
    outcome = describe(caught.value)

    assert (outcome.exit_code, outcome.cause) == (64, "UserError")
    assert outcome.fault is not None
    assert (outcome.fault.field, outcome.fault.value) == ("spec.training.learningRate", "-1")


def test_only_the_configuration_is_the_users_to_mend() -> None:
    """A damaged file of our own is a failure that another attempt may survive."""
    with pytest.raises(ValidationError) as caught:
        Measurement.model_validate_json("{oops")
    outcome = describe(caught.value)

    assert (outcome.exit_code, outcome.cause, outcome.fault) == (1, "Application", None)


@given(text=st.text(max_size=6000), field=st.text(max_size=200))
def test_the_termination_message_always_fits(text: str, field: str) -> None:
    """Whatever a traceback holds."""
    outcome = describe(ConfigError(field, text, text, text))
    message = fit_termination_message(outcome)

    assert len(message.encode()) <= 4096
    assert TrainTermination.model_validate_json(message).exit_code == 64


BYTES = st.none() | st.integers(0, 10**15 - 1)


@given(
    text=st.text(max_size=6000), phase=st.text(max_size=64), uri=st.text(max_size=1024), numbers=st.tuples(*[BYTES] * 6)
)
def test_the_termination_message_fits_with_a_memory_picture(
    text: str, phase: str, uri: str, numbers: tuple[int | None, ...]
) -> None:
    """And the numbers arrive whole: the operator plans with them."""
    fields = [name for name in MemoryPicture.model_fields if name != "phase"]
    picture = MemoryPicture.model_validate({"phase": phase, **dict(zip(fields, numbers, strict=True))})
    outcome = describe(MemoryError(text), rank=3).model_copy(
        update={"memory": picture, "step": 7, "checkpoint": CheckpointRef(step=7, uri=uri)}
    )
    try:
        message = fit_termination_message(outcome)
    except ValueError:
        assert len(json.dumps(uri) + json.dumps(phase)) > 3000  # no location looks like that
        return
    parsed = TrainTermination.model_validate_json(message)

    assert len(message.encode()) <= 4096
    assert parsed.memory is not None
    assert parsed.memory.model_dump(exclude={"phase"}) == picture.model_dump(exclude={"phase"})


@given(text=st.text(st.characters(exclude_categories=[]), max_size=200))
def test_a_worker_can_always_leave_its_last_word(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Also when the exception names a file whose name is no UTF-8."""
    handoff = Handoff(tmp_path_factory.getbasetemp())
    outcome = describe(FileNotFoundError(text), rank=0)
    handoff.write_outcome(0, outcome)

    assert handoff.read_outcome(0) == outcome
    assert json.loads(fit_termination_message(outcome))["exitCode"] == 1


KILL, TERM = -9, -15


@pytest.mark.parametrize(
    ("exits", "stopped", "code"),
    [
        pytest.param([Exit(0, 0), Exit(1, 0)], False, 0, id="all-well"),
        pytest.param([Exit(0, 0), Exit(1, 0)], True, 0, id="finished-in-spite-of-sigterm"),
        pytest.param([Exit(1, 77), Exit(0, 76)], False, 77, id="cause-then-victim"),
        pytest.param([Exit(1, 76), Exit(0, 79)], False, 79, id="victim-then-cause"),
        pytest.param([Exit(1, 76), Exit(0, 76)], False, 76, id="only-victims"),
        pytest.param([Exit(1, 76), Exit(0, KILL, by_us=True)], False, 76, id="a-victim-hangs"),
        pytest.param([Exit(1, KILL), Exit(0, 76)], False, 137, id="killed-by-the-kernel"),
        pytest.param([Exit(1, -11), Exit(0, 76)], False, 139, id="segmentation-fault"),
        pytest.param([Exit(1, KILL, is_out_of_memory=True), Exit(0, 76)], False, 77, id="killed-for-its-memory"),
        pytest.param([Exit(1, -6)], False, 134, id="abort"),
        pytest.param([Exit(1, -6, is_beside_loss=True), Exit(0, 76)], False, 76, id="abort-beside-a-lost-peer"),
        pytest.param([Exit(0, 75), Exit(1, 75)], True, 75, id="orderly-stop"),
        pytest.param([Exit(0, 75), Exit(1, 75)], False, 75, id="superseded"),
        pytest.param([Exit(0, KILL, by_us=True), Exit(1, 76)], True, 75, id="too-slow-to-stop"),
        pytest.param([Exit(0, TERM), Exit(1, TERM)], True, 75, id="stopped-while-starting"),
        pytest.param([Exit(0, 79), Exit(1, 75)], True, 79, id="a-cause-while-stopping"),
    ],
)
def test_the_first_real_cause_wins(tmp_path: Path, exits: list[Exit], stopped: bool, code: int) -> None:
    """Victims never hide it, and what was known about the run is added."""
    handoff = Handoff(tmp_path)
    known = CheckpointRef(step=4, uri="file:///x")
    handoff.record_step(5)
    handoff.record_resumed(3)
    handoff.record_said("DDP", "slow")
    handoff.record_checkpoint(known)
    outcome = conclude(exits, stopped, handoff)

    assert outcome.exit_code == code
    assert outcome.outcome == {0: "Succeeded", 75: "Preempted"}.get(code, "Failed")
    assert (outcome.step, outcome.resumed_from_step, outcome.checkpoint) == (5, 3, known)
    assert (outcome.strategy, outcome.warning) == ("DDP", "slow")


@pytest.mark.parametrize(
    ("exits", "stopped", "code", "rank"),
    [
        pytest.param([Exit(0, 76)], False, 76, 3, id="victim"),
        pytest.param([Exit(0, KILL, by_us=True)], False, 76, 3, id="in-a-collective"),
        pytest.param([Exit(0, 77)], False, 77, 0, id="cause-of-its-own"),
        pytest.param([Exit(0, 78)], False, 78, 0, id="hang"),
        pytest.param([Exit(0, 1)], False, 1, 0, id="traceback"),
        pytest.param([Exit(0, KILL, by_us=True)], True, 75, None, id="stopped"),
        pytest.param([Exit(0, 0)], False, 0, None, id="finished"),
    ],
)
def test_a_lost_peer_is_named_unless_this_pod_has_a_cause(
    tmp_path: Path, exits: list[Exit], stopped: bool, code: int, rank: int | None
) -> None:
    """The rank is the lost one, not our own."""
    loss = Loss(node=1, rank=3, message="rank 3 (node 1) has gone away without a word", patience=1.0)
    outcome = conclude(exits, stopped, Handoff(tmp_path), loss)

    assert (outcome.exit_code, outcome.rank) == (code, rank)
    assert (outcome.message == loss.message) == (code == 76)


def test_among_victims_the_workers_word_says_most(tmp_path: Path) -> None:
    """The peers know nothing either; the rank is unknown, for it is not our own."""
    handoff = Handoff(tmp_path)
    handoff.write_outcome(0, describe(PeerLostError("connection reset"), rank=0))
    loss = Loss(node=1, rank=3, message="rank 3 (node 1) ended with 76", patience=10.0, is_cause=False)
    outcome = conclude([Exit(0, 76)], False, handoff, loss)

    assert (outcome.exit_code, outcome.rank, outcome.message) == (76, None, "connection reset")


def test_the_workers_own_word_is_used(tmp_path: Path) -> None:
    """It knows the reason; the launcher only saw a number."""
    handoff = Handoff(tmp_path)
    handoff.write_outcome(1, describe(KeyError("weights"), rank=1))

    outcome = conclude([Exit(1, ExitCode.ERROR), Exit(0, 76)], False, handoff)

    assert (outcome.rank, outcome.message) == (1, "KeyError: 'weights'")


def test_training_and_the_writer_record_at_once(tmp_path: Path) -> None:
    """Neither thread stumbles over the other's draft, or takes back what the other recorded."""
    handoff = Handoff(tmp_path)
    errors: list[Exception] = []

    def save() -> None:
        try:
            for step in range(1, 401):
                handoff.record_checkpoint(CheckpointRef(step=step, uri="file:///x"))
        except Exception as error:
            errors.append(error)

    writer = threading.Thread(target=save)
    writer.start()
    for step in range(1, 401):
        handoff.record_step(step)
    writer.join()
    known = handoff.read_known()

    assert errors == []
    assert known.checkpoint is not None
    assert (known.step, known.checkpoint.step) == (400, 400)
