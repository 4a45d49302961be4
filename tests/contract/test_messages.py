"""Termination messages fit into what the kubelet keeps, whatever is put into them, and are read back whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.config import ContractModel
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import (
    TERMINATION_MESSAGE_LIMIT,
    CheckpointRef,
    DatasetFacts,
    ModelFacts,
    PhaseLine,
    PrepareTermination,
    Progress,
    PublishedResult,
    TrainTermination,
    UserFault,
    WarningLine,
    fit_termination_message,
    parse_line,
)
from finetune_trainer.outcome import printable
from finetune_trainer.progress import stamped
from makers import raw_facts

pytestmark = pytest.mark.unit

Model = TypeVar("Model", bound=ContractModel)


def _builds(model: type[Model], /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Model]:
    """``st.builds`` would fill in the camelCase names as well."""
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


# Also lone surrogates, as in file names that are no UTF-8, and texts far beyond the limit.
texts = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(), max_size=30),
    st.sampled_from([1, 10, 400]),
)
faults = _builds(UserFault, field=st.just("spec.dataset"), value=texts, message=texts, remedy=texts)
digests = st.just("a" * 64)
uris = st.from_regex(r"file:///mnt/finetune/[a-z/]{0,600}", fullmatch=True)
checkpoints = _builds(CheckpointRef, step=st.integers(0, 10**9), uri=uris)
results = _builds(
    PublishedResult,
    uri=uris,
    digest=digests,
    metrics=st.dictionaries(st.text("abc", min_size=1, max_size=20), st.floats(), max_size=12),
)
trained = _builds(
    TrainTermination,
    outcome=st.sampled_from(["Succeeded", "Preempted", "Failed"]),
    exit_code=st.sampled_from([int(code) for code in ExitCode]),
    step=st.none() | st.integers(0, 10**9),
    resumed_from_step=st.none() | st.integers(0, 10**9),
    strategy=st.sampled_from([None, "DDP", "ZeRO3"]),
    warning=texts.map(lambda text: printable(text)[:300]),  # a text with a limit is checked to be UTF-8
    message=texts,
    fault=st.none() | faults,
    checkpoint=st.none() | checkpoints,
    result=st.none() | results,
)
prepared = _builds(
    PrepareTermination,
    outcome=st.sampled_from(["Succeeded", "Failed"]),
    message=texts,
    fault=st.none() | faults,
    warnings=st.lists(texts, max_size=8),
    model=st.none() | st.just(ModelFacts.model_validate(raw_facts()["model"])),
    dataset=st.none() | st.just(DatasetFacts.model_validate(raw_facts()["dataset"])),
)


@given(trained | prepared)
def test_message_always_fits_and_is_read_back(message: TrainTermination | PrepareTermination) -> None:
    """The kubelet cuts at 4096 bytes, and half a JSON is none."""
    text = fit_termination_message(message)
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT
    again = type(message).model_validate_json(text)
    assert again.outcome == message.outcome
    assert (again.fault is None) == (message.fault is None)


@given(trained)
def test_only_free_text_is_cut(message: TrainTermination) -> None:
    """Step, checkpoint and result decide what comes next."""
    again = TrainTermination.model_validate_json(fit_termination_message(message))
    for name in ("step", "resumed_from_step", "strategy", "checkpoint", "result"):
        assert getattr(again, name) == getattr(message, name)


def test_short_message_is_not_touched() -> None:
    """Character by character."""
    message = TrainTermination(outcome="Failed", exit_code=1, message="ValueError: é ≠ e")
    assert TrainTermination.model_validate_json(fit_termination_message(message)) == message


def test_typed_fields_beyond_the_limit_are_an_error() -> None:
    """Cutting a path in half would be worse."""
    message = TrainTermination(outcome="Succeeded", exit_code=0, checkpoint=CheckpointRef(step=1, uri="é" * 1024))
    with pytest.raises(ValueError, match="4096"):
        fit_termination_message(message)


@pytest.mark.parametrize(
    "line",
    [
        Progress(step=1, total_steps=2, epoch=0.5, loss=1.0),
        PhaseLine(phase="train"),
        WarningLine(message="é"),
        PublishedResult(uri="file:///x", digest="a" * 64, metrics={"evalLoss": 1.0}),
    ],
    ids=lambda line: line.kind,
)
def test_lines_are_read_as_they_were_written(line: Progress | PhaseLine | WarningLine | PublishedResult) -> None:
    """One JSON object per line."""
    text = line.model_dump_json(by_alias=True, exclude_none=True)
    assert "\n" not in text
    assert parse_line(text) == line


@pytest.mark.parametrize(
    "text",
    ["", "step 1", "{", "{}", "[]", '{"kind": "other"}', '{"kind": ["progress"]}', '{"kind": "phase", "phase": "x"}'],
    ids=["empty", "text", "half", "no-kind", "list", "unknown-kind", "kind-is-a-list", "unknown-phase"],
)
def test_other_lines_are_not_ours(text: str) -> None:
    """Libraries print, too."""
    assert parse_line(text) is None


def test_what_a_later_trainer_adds_is_passed_over() -> None:
    """An operator that was rolled back has to understand the pods of the one after it."""
    words = TrainTermination(outcome="Preempted", exit_code=75, checkpoint=CheckpointRef(step=3, uri="file:///x"))
    later = json.loads(words.to_json())
    later["checkpoint"]["parts"], later["resumes"] = 4, {"from": 1}
    assert TrainTermination.model_validate_json(json.dumps(later)) == words
    progress = Progress(step=1, total_steps=2, epoch=0.5)
    assert parse_line(json.dumps(json.loads(progress.to_json()) | {"power": 300})) == progress


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    """JSON has no NaN: ``null`` would make the whole result unreadable."""
    result = PublishedResult(uri="x", digest="a" * 64, metrics={"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert json.loads(result.to_json())["metrics"] == {"c": 1.0}


@pytest.mark.parametrize(
    "line", [WarningLine(message="x"), CheckpointRef(step=1, uri="file:///x")], ids=["line", "ref"]
)
def test_parsing_reads_no_clock(line: ContractModel) -> None:
    """A message without a time has none, whenever it is read."""
    raw = {name: value for name, value in line.model_dump().items() if name != "time"}

    assert type(line).model_validate(raw).model_dump()["time"] == ""


def test_the_sender_says_when() -> None:
    """The line is the operator's sign of life."""
    line = parse_line(stamped(PhaseLine(phase="train")))

    assert isinstance(line, PhaseLine)
    assert abs(datetime.fromisoformat(line.time) - datetime.now(UTC)) < timedelta(minutes=1)
