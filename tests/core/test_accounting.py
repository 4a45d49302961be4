"""What attempts cost, and what of it was lost."""

from __future__ import annotations

import pytest

from makers import SAVED, a_job, a_pod, a_pool, a_result, a_runtime, an_attempt_job, at, last_words, preempted, training

pytestmark = pytest.mark.unit


def test_gpu_time_runs_from_binding_until_the_pods_are_gone() -> None:
    """Two GPUs for 110 s, of which the last 10 s were saved by nothing."""
    runtime = a_runtime(a_pool(pricePerGpuHour=3.6))
    story = training(a_job().on(gpusPerNode=2), runtime)
    job = an_attempt_job(run=story.status.attempts[-1].run)
    pod = a_pod().bound(0).of_run(story.status.attempts[-1].run)
    story.sees(at(5), jobs=(job,), pods=(pod,))
    words = last_words(75, step=31, checkpoint=SAVED)
    story.sees(at(110), jobs=(job,), pods=(pod.exited(75, after=110, words=words),))
    story.sees(at(111), pods=(pod.exited(75, after=110, words=words),))
    first, totals = story.status.attempts[0], story.status.totals
    assert (first.gpu_seconds, first.lost_seconds) == (220, 10)
    assert (totals.gpu_seconds, totals.lost_gpu_seconds, totals.goodput_percent, totals.cost) == (220, 20, 90.9, 0.22)


def test_a_checkpoint_that_becomes_known_after_the_end_is_progress() -> None:
    """A disruption is recorded before its pods have saved; what they say then is no matter of the next end only."""
    story = training()
    for number in (1, 2):
        pod = a_pod(attempt=number).disrupted("EvictionByEvictionAPI")
        story.sees(at(100 * number), jobs=(an_attempt_job(number),), pods=(pod,))
        totals = story.status.totals
        assert (totals.without_progress, totals.checkpoint_step) == (1, SAVED["step"] if number == 2 else 0)
        saved = last_words(75, checkpoint=SAVED | {"step": 20 + 10 * number})
        story.sees(at(100 * number + 10), pods=(pod.exited(75, words=saved),))
        assert (story.status.totals.without_progress, story.status.totals.checkpoint_step) == (0, 20 + 10 * number)
        story.sees(at(100 * number + 20))


def test_what_its_pods_save_after_an_attempts_end_was_recorded_is_not_lost() -> None:
    """They say so in the same pass that sees them gone."""
    story = training()
    pod = a_pod().bound(0)
    story.sees(at(5), jobs=(an_attempt_job(),), pods=(pod,))
    story.sees(at(90), jobs=(an_attempt_job(),), pods=(pod.disrupted("EvictionByEvictionAPI", after=90),))
    story.sees(at(110), pods=(pod.exited(75, after=110, words=last_words(75, checkpoint=SAVED)),))
    first, totals = story.status.attempts[0], story.status.totals
    assert (first.gpu_seconds, first.lost_seconds) == (110, 10)
    assert (totals.lost_gpu_seconds, totals.goodput_percent) == (10, 90.9)


def test_an_attempt_that_saved_nothing_lost_everything() -> None:
    """From its binding on."""
    story = training()
    preempted(story, 1, 0, 60)
    first = story.status.attempts[0]
    assert (first.gpu_seconds, first.lost_seconds) == (70, 70)
    assert story.status.totals.goodput_percent == 0.0
    assert story.status.totals.cost is None


def test_a_run_that_completes_at_once_loses_nothing_and_is_settled_in_the_same_write() -> None:
    """No further pass is needed."""
    story = training()
    pod = a_pod().bound(0)
    story.sees(at(5), jobs=(an_attempt_job(),), pods=(pod,))
    done = pod.exited(0, after=95, words=last_words(0, result=a_result()))
    story.sees(at(100), jobs=(an_attempt_job(is_complete=True),), pods=(done,))
    assert (story.status.phase, story.status.attempts[-1].lost_seconds) == ("Complete", 0)
    assert (story.status.totals.gpu_seconds, story.status.totals.goodput_percent) == (95, 100.0)


def test_pods_that_vanish_are_still_accounted_for() -> None:
    """Their binding was noted while they ran."""
    story = training()
    job = an_attempt_job()
    story.sees(at(5), jobs=(job,), pods=(a_pod().bound(0),))
    story.sees(at(60), jobs=(job,), vanished_pods=(a_pod().bound(0).exited(75, after=59).vanished().build(),))
    story.sees(at(61))
    assert story.status.attempts[0].gpu_seconds == 59
