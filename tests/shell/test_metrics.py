"""What is counted, and that nothing is counted twice or kept for ever."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from apiserver import free_port
from finetune_operator.api.conditions import Condition
from finetune_operator.api.status import AttemptStatus, CheckpointStatus, FineTuneJobStatus, TotalsStatus
from finetune_operator.errors import ConfigError, Conflict
from finetune_operator.shell import metrics as names
from finetune_operator.shell.dispatcher import Dispatcher
from finetune_operator.shell.metrics import Metrics, unsaved_since
from finetune_operator.shell.metrics_server import serve_metrics
from finetune_operator.shell.object_key import ObjectKey
from makers import NAME, NAMESPACE, NOW, at

pytestmark = pytest.mark.unit

KEY = ObjectKey(NAMESPACE, NAME)
LABELS = {"namespace": NAMESPACE, "name": NAME}


def value(metrics: Metrics, name: tuple[str, str], /, **labels: str) -> float | None:
    """One sample of the registry, as Prometheus would get it."""
    return metrics.registry.get_sample_value(name[0], labels)


def a_status(*attempts: AttemptStatus, running: bool = True, saved_at: float | None = None) -> FineTuneJobStatus:
    """A status with these attempts, each of which held 100 GPU-seconds and lost 20 when it ended."""
    ended = sum(attempt.end_time is not None for attempt in attempts)
    condition = Condition(
        type="Running", status="True" if running else "False", reason="Training", last_transition_time=NOW
    )
    checkpoint = CheckpointStatus(step=5, uri="pvc://c/x", time=at(saved_at)) if saved_at is not None else None
    return FineTuneJobStatus(
        attempts=list(attempts),
        totals=TotalsStatus(attempts=len(attempts), gpu_seconds=100 * ended, lost_gpu_seconds=20 * ended),
        conditions=[condition],
        checkpoint=checkpoint,
    )


def an_attempt(number: int, *, ended: str | None = None) -> AttemptStatus:
    """An attempt that runs, or ended for a cause."""
    end = {} if ended is None else {"end_time": at(60), "cause": ended}
    return AttemptStatus(number=number, start_time=NOW, **end)


def test_an_attempt_that_ends_is_counted_at_the_write_that_records_it_and_never_again() -> None:
    """With its GPU time; later writes of the same record are no news, nor is what an earlier operator recorded."""
    metrics = Metrics()
    live, dead = a_status(an_attempt(1)), a_status(an_attempt(1, ended="Preempted"))
    followed = a_status(an_attempt(1, ended="Preempted"), an_attempt(2))
    done = a_status(an_attempt(1, ended="Preempted"), an_attempt(2, ended=""))
    for before, after in ((live, dead), (dead, dead), (dead, followed), (followed, done), (done, done)):
        metrics.status_written(NAMESPACE, before, after)
    again = Metrics()
    again.status_written(NAMESPACE, followed, done)

    assert value(metrics, names.ATTEMPTS_ENDED, cause="Preempted") == 1
    assert value(metrics, names.ATTEMPTS_ENDED, cause="Succeeded") == 1
    assert value(metrics, names.ATTEMPTS_ENDED, cause="NodeLost") == 0
    assert value(metrics, names.GPU_SECONDS, namespace=NAMESPACE) == 200
    assert value(metrics, names.LOST_GPU_SECONDS, namespace=NAMESPACE) == 40
    assert value(again, names.ATTEMPTS_ENDED, cause="Preempted") == 0
    assert value(again, names.GPU_SECONDS, namespace=NAMESPACE) == 100


@pytest.mark.parametrize(
    ("status", "since"),
    [
        pytest.param(a_status(an_attempt(1)), at(0), id="nothing saved yet: since it began"),
        pytest.param(a_status(an_attempt(1), saved_at=30), at(30), id="saved"),
        pytest.param(a_status(an_attempt(1), saved_at=-3600), at(0), id="resumed from an old checkpoint"),
        pytest.param(a_status(an_attempt(1), running=False), None, id="waits for nodes"),
        pytest.param(a_status(an_attempt(1, ended="Preempted"), saved_at=30), None, id="ended"),
        pytest.param(FineTuneJobStatus(), None, id="new"),
    ],
)
def test_unsaved_work(status: FineTuneJobStatus, since: Any) -> None:
    """The age that matters is the work that a death would cost now."""
    assert unsaved_since(status) == since


@pytest.mark.parametrize("how", ["ends", "goes", "never ran"])
def test_the_checkpoint_age_grows_while_the_job_runs_and_vanishes_with_it(how: str) -> None:
    """So the number of series is bounded by the jobs that run."""
    now = NOW
    metrics = Metrics(lambda: now)
    if how != "never ran":
        metrics.job_looked_at(KEY, a_status(an_attempt(1), saved_at=30))
        now = at(90)
        assert value(metrics, names.CHECKPOINT_AGE_SECONDS, **LABELS) == 60
        now += timedelta(seconds=5)
        assert value(metrics, names.CHECKPOINT_AGE_SECONDS, **LABELS) == 65
    if how == "goes":
        metrics.forget(KEY)
    else:
        metrics.job_looked_at(KEY, a_status(an_attempt(1, ended="")))
    assert value(metrics, names.CHECKPOINT_AGE_SECONDS, **LABELS) is None
    metrics.forget(KEY)


async def test_the_dispatcher_counts_its_passes_and_its_queue() -> None:
    """Failed passes by the class of their error; an error that is none of ours is a bug."""
    metrics = Metrics()
    errors: list[Exception | None] = [Conflict("old read"), ValueError("oh"), None]
    done, blocked = asyncio.Event(), asyncio.Event()

    async def run_pass(key: ObjectKey) -> float | None:
        error = errors.pop(0)
        if error is not None:
            raise error
        done.set()
        await blocked.wait()
        return None

    dispatcher = Dispatcher(run_pass, metrics, has_news=lambda key, **_: True, workers=1, resync_seconds=60)
    dispatcher.start()
    dispatcher.wake(KEY)
    await asyncio.wait_for(done.wait(), 10)
    dispatcher.wake(ObjectKey(NAMESPACE, "waits"))
    assert value(metrics, names.QUEUE_DEPTH) == 1
    await dispatcher.stop()

    assert value(metrics, names.FAILED_PASSES, reason="Conflict") == 1
    assert value(metrics, names.FAILED_PASSES, reason="Bug") == 1
    assert metrics.registry.get_sample_value(names.RECONCILE_SECONDS[0] + "_count") == 3


async def test_metrics_are_served_in_prometheus_words() -> None:
    """Over HTTP, on a port of their own."""
    metrics, port = Metrics(), free_port()
    metrics.event_came("Pod")
    async with serve_metrics(metrics, port), aiohttp.ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{port}/metrics") as response:
            text = await response.text()
            assert response.headers["Content-Type"].startswith("text/plain; version=")
        with pytest.raises(ConfigError, match=f"FINETUNE_OPERATOR_METRICS_PORT must be a free port, is {port}"):
            async with serve_metrics(metrics, port):
                pass
    assert 'finetune_operator_watch_events_total{kind="Pod"} 1.0' in text.splitlines()


def test_every_metric_is_documented_in_its_own_words() -> None:
    """docs/metrics.md has a row for each name, with its help text, and for no other."""
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(finetune_operator_\w+)` \| .* \| (.*) \|$", page, re.MULTILINE))
    exposed = {family.name: family.documentation for family in Metrics().registry.collect()}
    ours = {name: text for name, text in exposed.items() if name.startswith("finetune_operator_")}
    # the text format adds the suffix of counters
    assert {name.removesuffix("_total"): text for name, text in documented.items()} == ours
