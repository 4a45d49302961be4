"""Progress comes from a pod's log and is never trusted: whatever it says, the status stays valid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.core.observed import LogReport
from finetune_operator.shell.logs import parse_log
from finetune_trainer.messages import Progress, parse_line
from makers import (
    Story,
    a_job,
    a_pod,
    a_prepare_job,
    a_prepare_pod,
    a_result,
    accepted,
    an_attempt_job,
    at,
    last_words,
    prepared,
    training,
)
from openapi import status_violations

pytestmark = pytest.mark.unit

LINE = {"kind": "progress", "time": "2026-05-01T12:01:00Z", "step": 25, "totalSteps": 60, "epoch": 0.9312}


def _see(story: Story, line: dict[str, Any], pod_uid: str = "pod-a1-0") -> Story:
    """A pass after rank 0 wrote a line, if the line is taken for one of ours at all."""
    parsed = parse_line(json.dumps(line))
    log = LogReport(pod_uid=pod_uid, progress=parsed if isinstance(parsed, Progress) else None)
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),), log=log)
    return story


def test_line_becomes_status() -> None:
    """The columns show it."""
    line = LINE | {"loss": 1.62344, "evalLoss": 1.7, "learningRate": 1e-4, "estimatedRemainingSeconds": 80.4}
    progress = _see(training(), line).status.progress
    assert progress is not None
    assert (progress.steps, progress.progress_percentage, progress.epoch) == ("25/60", 41, 0.931)
    assert (progress.loss, progress.eval_loss, progress.learning_rate) == (1.6234, 1.7, 1e-4)
    assert (progress.estimated_remaining_seconds, progress.last_updated_time) == (80, at(60))


def test_line_says_how_the_model_is_spread_and_what_went_wrong() -> None:
    """The plan may have failed its self-test; both outlive the run."""
    warning = "FSDP failed its self-test; DDP is used"
    story = _see(training(), LINE | {"strategy": "DDP", "warning": warning})
    seen = story.status.progress
    assert seen is not None
    assert (seen.strategy, seen.warning) == ("DDP", warning)
    story.sees(
        jobs=(an_attempt_job(is_complete=True),), pods=(a_pod().exited(0, words=last_words(0, result=a_result())),)
    )
    done = story.status.progress
    assert done is not None
    assert (story.status.phase, done.strategy, done.warning) == ("Complete", "DDP", warning)


def test_a_run_that_is_over_before_its_log_is_read_says_how_the_model_was_spread_and_what_went_wrong() -> None:
    """With its last words."""
    story = training()
    words = last_words(0, result=a_result(), strategy="DDP", warning="FSDP failed its self-test; DDP is used")
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(a_pod().exited(0, words=words),))
    done = story.status.progress
    assert done is not None
    assert (done.strategy, done.warning) == ("DDP", "FSDP failed its self-test; DDP is used")


@pytest.mark.parametrize("uid", ["pod-a0-0", "of-a-namesake"], ids=["older-attempt", "deleted-and-applied-again"])
def test_line_of_another_pod_is_ignored(uid: str) -> None:
    """The reader may be late."""
    assert _see(training(), LINE, pod_uid=uid).status.progress is None


def test_resumed_attempt_shows_where_it_started() -> None:
    """``attempts[].stepFrom``."""
    story = _see(training(), LINE | {"resumedFromStep": 20})
    assert (story.status.attempts[-1].step_from, story.status.attempts[-1].step_to) == (20, 25)
    assert "resumed from step 20" in story.status.message


def test_warning_of_an_earlier_attempt_does_not_outlive_it() -> None:
    """The last one was spread as planned."""
    story = _see(training(), LINE | {"strategy": "DDP", "warning": "FSDP failed its self-test; DDP is used"})
    words = last_words(0, result=a_result(), strategy="FSDP")
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(a_pod().exited(0, words=words),))
    done = story.status.progress
    assert done is not None
    assert (done.strategy, done.warning) == ("FSDP", "")


def test_last_words_of_a_pod_that_is_gone_are_heard() -> None:
    """Its node was drained as soon as the run had ended well."""
    story = training()
    words = last_words(0, result=a_result(), resumedFromStep=20)
    gone = (a_pod().exited(0, words=words).vanished().build(),)
    story.sees(jobs=(an_attempt_job(is_complete=True),), vanished_pods=gone)
    assert story.status.result is not None
    assert (story.status.phase, story.status.attempts[-1].step_from) == ("Complete", 20)


@pytest.mark.parametrize("code", [0, 75, 77])
def test_the_same_last_words_are_not_written_twice(code: int) -> None:
    """Pods linger, and are read in every pass."""
    story = training()
    words = last_words(
        code, resumedFromStep=20, step=23, strategy="DDP", warning="w", result=a_result() if not code else None
    )
    pods = (a_pod().exited(code, words=words),)
    jobs = (an_attempt_job(is_complete=True),) if code == 0 else ()
    story.sees(jobs=jobs or (an_attempt_job(),), pods=pods)
    story.job = story.job.with_spec(suspend=True)  # else the next attempt is begun
    for _ in range(3):
        story.sees(jobs=jobs, pods=pods)
    assert story.actions.status is None


def test_attempt_that_is_over_before_its_log_is_read_shows_where_it_started() -> None:
    """Its pods say it with their last words: a few steps take less time than the first look at a log."""
    story = training()
    words = last_words(0, resumedFromStep=20, result=a_result())
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(a_pod().exited(0, words=words),))
    assert (story.status.phase, story.status.attempts[-1].step_from) == ("Complete", 20)


@pytest.mark.parametrize("in_time", [True, False], ids=["with-the-end", "after-it"])
def test_attempt_that_is_evicted_shows_where_it_started(in_time: bool) -> None:
    """Whether its pods' last words are there when its end is recorded, or come while it waits for them to go."""
    story = training()
    ended = a_pod().disrupted("EvictionByEvictionAPI").exited(75, resumedFromStep=20, step=23)
    for pod in [ended] if in_time else [a_pod().disrupted("EvictionByEvictionAPI"), ended]:
        story.sees(jobs=(an_attempt_job(),), pods=(pod,))
    first = story.status.attempts[-1]
    assert first.end_time is not None
    assert (first.cause, first.step_from, first.step_to) == ("Preempted", 20, 23)


def test_checkpoint_never_goes_back() -> None:
    """An older report never overwrites a newer one."""
    checkpoint = {"step": 20, "uri": "file:///mnt/finetune/storage/checkpoints/x", "time": "2026-05-01T12:00:30Z"}
    story = _see(training(), LINE | {"checkpoint": checkpoint})
    story = _see(story, LINE | {"step": 26, "checkpoint": checkpoint | {"step": 10}})
    assert story.status.checkpoint is not None
    assert (story.status.checkpoint.step, story.status.checkpoint.uri) == (20, "pvc://finetune-storage/checkpoints/x")


def test_the_same_line_is_not_written_twice() -> None:
    """A pass without news writes nothing."""
    story = _see(training(), LINE)
    _see(story, LINE)
    assert story.actions.status is None


@pytest.mark.parametrize(
    "change",
    [
        {"loss": float("nan"), "learningRate": float("inf"), "epoch": float("-inf")},
        {"estimatedRemainingSeconds": float("nan")},
        {"estimatedRemainingSeconds": 1e300},
        {"estimatedRemainingSeconds": -1e300},
        {"step": 10**30},
        {"totalSteps": 10**30},
        {"step": -1},
        {"totalSteps": 0},
        {"step": 100, "totalSteps": 60},
        {"loss": 1e308, "tokensPerSecond": 1e308},
        {"resumedFromStep": 10**30},
        {"time": "yesterday"},
        {"time": "2026-05-01"},
        {"time": "0001-01-01T00:00:00+23:59"},
        {"time": "2026-05-01T12:00:00+00:00:01"},
        {"checkpoint": {"step": 10**30, "uri": "x"}},
        {"checkpoint": {"step": -4, "uri": "x"}},
        {"checkpoint": {"step": 3, "uri": "x" * 60_000, "time": "y" * 60_000}},
        {"checkpoint": {"step": 3, "uri": "\ud800"}},
        {"strategy": "F" * 33},
        {"warning": "w" * 301},
        {"strategy": "\ud800", "warning": "\u0000"},
        {"unknown": 1},
    ],
    ids=lambda change: json.dumps(change)[:50],
)
def test_whatever_a_line_says_the_status_stays_valid(change: dict[str, Any]) -> None:
    """One 422 would stop the job's status for ever."""
    story = _see(training(), LINE | change)
    assert status_violations(story.status.to_dict()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
KEYS = [
    "time",
    "step",
    "totalSteps",
    "epoch",
    "loss",
    "learningRate",
    "estimatedRemainingSeconds",
    "checkpoint",
    "strategy",
    "warning",
]
TRAINING = training()


@given(st.dictionaries(st.sampled_from([*KEYS, "resumedFromStep", "x"]), json_values))
def test_no_line_makes_an_invalid_status(change: dict[str, Any]) -> None:
    """Any JSON at all."""
    story = _see(Story(TRAINING.job, TRAINING.snapshot), LINE | change)
    assert status_violations(story.status.to_dict()) == []


@given(st.text() | st.binary().map(lambda raw: raw.decode(errors="replace")))
def test_no_log_breaks_the_reader(text: str) -> None:
    """Library output shares stdout."""
    parse_log(text, "u")
    parse_log('{"kind": "progress", ' + text, "u")


def test_deeply_nested_line_is_no_line() -> None:
    """64 KiB of brackets must not end the reader."""
    assert parse_line('{"kind": "phase", "phase": ' + "[" * 60_000) is None


def test_last_valid_line_is_taken() -> None:
    """Half a line at the end of what was read is none."""
    text = "\n".join(["warning: x", json.dumps(LINE), json.dumps(LINE | {"step": 26}), '{"kind": "progress", "st'])
    report = parse_log(text, "u")
    assert report is not None
    assert report.progress is not None
    assert (report.pod_uid, report.progress.step) == ("u", 26)


HOSTILE_RESULTS: dict[str, dict[str, Any]] = {
    "not-a-number": {"metrics": {"evalLoss": float("nan"), "trainLoss": float("inf"), "steps": 60}},
    "null": {"metrics": {"evalLoss": None}},
    "long-uri": {"uri": "file:///" + "x" * 3000},
    "many-metrics": {"metrics": {f"m{index}": 1.0 for index in range(100)}},
    "long-metric": {"metrics": {"m" * 200: 1.0}},
    "surrogate": {"uri": "file:///\ud800"},
}


@pytest.mark.parametrize("change", HOSTILE_RESULTS.values(), ids=HOSTILE_RESULTS)
def test_whatever_the_last_words_say_the_run_completes(change: dict[str, Any]) -> None:
    """The gang ended well; a description that cannot be stored must not stop that from being said."""
    story = training()
    words = last_words(0, result=a_result(**change))
    story.sees(jobs=(an_attempt_job(is_complete=True),), pods=(a_pod().exited(0, words=words),))
    assert story.status.phase == "Complete"
    assert status_violations(story.status.to_dict()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"step": 10**30},
        {"checkpoint": {"step": 10**30, "uri": "x"}},
        {"message": "x" * 4000},
        {"message": "é\ud800"},
        {"fault": {"field": "f" * 1000, "value": "v" * 1000, "message": "m" * 1000, "remedy": "r" * 1000}},
        {"memory": {"phase": "p" * 65}},
        {"memory": {"phase": "p" * 64, "deviceReservedBytes": 10**14}},
        {"memory": {"phase": "p", "hostPeakBytes": -1}},
        {"rank": 10**30},
        {"rank": -1},
        {"resumedFromStep": 10**30},
        {"resumedFromStep": -1},
        {"strategy": "s" * 33},
        {"strategy": "DDP", "warning": "w" * 301},
        {"strategy": "DDP", "warning": "\x00"},
    ],
    ids=[
        "step", "checkpoint", "long", "surrogate", "long-fault", "long-phase", "memory", "negative-memory", "rank",
        "negative-rank", "resumed", "negative-resumed", "long-strategy", "long-warning", "zero-byte",
    ],
)  # fmt: skip
@pytest.mark.parametrize("code", [1, 65, 75, 76, 77], ids=["crash", "user", "preempted", "peer-lost", "memory"])
def test_whatever_a_failure_says_the_status_stays_valid(code: int, change: dict[str, Any]) -> None:
    """Bounded, and in numbers that JSON has."""
    story = training()
    story.sees(jobs=(an_attempt_job(),), pods=(a_pod().exited(code, words=last_words(code, **change)),))
    assert story.status.attempts[-1].cause
    assert status_violations(story.status.to_dict()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"architecture": "A" * 500, "parameters": 1, "weightBytes": 1, "dtype": "x", "stagedUri": "x",
                   "digest": "1" * 64}},
        {"model": {"architecture": "A", "parameters": 10**30, "weightBytes": 1, "dtype": "x", "stagedUri": "x",
                   "digest": "1" * 64}},
        {"result": a_result(uri="x" * 3000)},
        {"result": a_result(metrics={"evalLoss": float("nan")})},
        {"warnings": ["w" * 3000]},
        {"warnings": ["w"] * 50},
    ],
    ids=["long-text", "huge-number", "long-uri", "not-a-number", "long-warning", "many-warnings"],
)  # fmt: skip
def test_whatever_prepare_says_the_status_stays_valid(change: dict[str, Any]) -> None:
    """Its pod is no more trusted than the others."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_complete=True),), pods=(a_prepare_pod().exited(0, words=prepared(**change)),))
    assert status_violations(story.status.to_dict()) == []


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [((3, 3), 3), ((None, 2), 2), ((0, None), 0), ((4, None), None), ((-1, 10**30), None), ((None, None), None)],
    ids=["all", "one", "rank-0", "beyond-the-gang", "nonsense", "nobody-knows"],
)
def test_lost_rank_that_peers_name_is_kept(ranks: tuple[int | None, int | None], expected: int | None) -> None:
    """Beside the rank of the pod that is recorded; whose fault it is is another question."""
    story = training(a_job().on(nodes=2, gpusPerNode=2))
    assert story.snapshot is not None
    run = story.snapshot.digest[:12]
    pods = tuple(
        a_pod(index).of_run(run).exited(76, **({} if rank is None else {"rank": rank}), cause="PeerLost")
        for index, rank in enumerate(ranks)
    )
    story.sees(at(200), jobs=(an_attempt_job(run=run, is_failed=True),), pods=pods)
    ended = story.status.attempts[-1]
    assert ended.end_time is not None
    assert (ended.rank, ended.lost_rank) == (0, expected)
    assert status_violations(story.status.to_dict()) == []


def test_phase_is_kept_when_its_line_has_left_the_part_of_the_log_that_is_read() -> None:
    """It is written once, at the phase's beginning."""
    story = training()
    progress = Progress(time="2026-05-01T12:00:00Z", step=3, total_steps=400, epoch=0.1)
    for phase in ("train", ""):
        log = LogReport(pod_uid="pod-a1-0", progress=progress, phase=phase)
        story.sees(jobs=(an_attempt_job(),), pods=(a_pod(),), log=log)
    assert story.status.progress is not None
    assert story.status.progress.phase == "train"
