"""From exceptions and worker ends to the pod's one last word."""

from __future__ import annotations

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
from finetune_trainer.messages import CheckpointRef, TrainTermination, fit_termination_message
from finetune_trainer.outcome import Handoff, describe
from trainer.tiny import Assets, a_config

pytestmark = pytest.mark.unit

DistBackendError = type("DistBackendError", (RuntimeError,), {})
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        pytest.param(OutOfMemoryError("CUDA out of memory"), 77, "OutOfMemory", id="torch"),
        pytest.param(RuntimeError("CUDA error: out of memory"), 77, "OutOfMemory", id="driver"),
        pytest.param(MemoryError(), 77, "OutOfMemory", id="host"),
        pytest.param(ConfigError("spec.x", 1, "must be 2", "set 2"), 64, "UserError", id="config"),
        pytest.param(NoCudaError("no device"), 69, "NoCuda", id="no-device"),
        pytest.param(PeerLostError("gone"), 76, "PeerLost", id="peer"),
        pytest.param(DistBackendError("ncclRemoteError: a remote process exited"), 76, "PeerLost", id="nccl"),
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
        pytest.param([Exit(0, 75), Exit(1, 75)], True, 75, id="orderly-stop"),
        pytest.param([Exit(0, 75), Exit(1, 75)], False, 75, id="superseded"),
        pytest.param([Exit(0, KILL, by_us=True), Exit(1, 76)], True, 75, id="too-slow-to-stop"),
        pytest.param([Exit(0, TERM), Exit(1, TERM)], True, 75, id="stopped-while-starting"),
        pytest.param([Exit(0, 79), Exit(1, 75)], True, 79, id="a-cause-while-stopping"),
    ],
)
def test_the_first_real_cause_wins(tmp_path: Path, exits: list[Exit], stopped: bool, code: int) -> None:
    """Victims never hide it, and what was known about the checkpoint is added."""
    handoff = Handoff(tmp_path)
    known = CheckpointRef(step=4, uri="file:///x")
    handoff.record_step(5)
    handoff.record_checkpoint(known)
    outcome = conclude(exits, stopped, handoff)

    assert outcome.exit_code == code
    assert outcome.outcome == {0: "Succeeded", 75: "Preempted"}.get(code, "Failed")
    assert (outcome.step, outcome.checkpoint) == (5, known)


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
