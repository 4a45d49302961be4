"""What the operator counts. The names are an interface: dashboards and alerts use them, docs/metrics.md explains them.

Attempts and GPU time are counted when a status write has succeeded, from the difference to the status that was read. A
pass that is repeated, and an operator that starts anew, find the difference gone and count nothing twice; a write whose
answer was lost is not counted at all. The sums that are exact for ever are in ``status.totals``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from finetune_operator.api.conditions import is_true
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.constants import JOB_KIND, RUNTIME_KIND, Cause, ConditionType
from finetune_operator.core.attempt_record import live_attempt
from finetune_operator.shell.object_key import ObjectKey

# Name and help text.
RECONCILE_SECONDS = (
    "finetune_operator_reconcile_seconds",
    "Duration of one pass over one FineTuneJob, failed ones included.",
)
FAILED_PASSES = (
    "finetune_operator_failed_passes_total",
    "Passes that failed and are repeated, by reason; Conflict is a pass decided on an old read and harmless.",
)
QUEUE_DEPTH = ("finetune_operator_queue_depth", "FineTuneJobs that wait for a worker.")
TASKS = (
    "finetune_operator_tasks",
    "Tasks of the operator's event loop: watches, workers and logs that are followed. Only running jobs add to it.",
)
KNOWN_JOBS = (
    "finetune_operator_known_jobs",
    "FineTuneJobs that the operator keeps something about in memory, by what it is; none that is gone.",
)
WATCH_EVENTS = ("finetune_operator_watch_events_total", "Events that the watches delivered, by kind of object.")
API_REQUESTS = (
    "finetune_operator_api_requests_total",
    "Requests to the API server, watches excepted, by verb and HTTP status; error: no answer.",
)
API_REQUEST_SECONDS = (
    "finetune_operator_api_request_seconds",
    "Duration of requests to the API server, watches excepted, by verb.",
)
ATTEMPTS_ENDED = (
    "finetune_operator_attempts_ended_total",
    "Attempts that ended, by cause as in status.attempts; Succeeded: it published its result.",
)
GPU_SECONDS = (
    "finetune_operator_gpu_seconds_total",
    "GPU time held by attempts that ended, from getting their nodes until their pods were gone, by namespace.",
)
LOST_GPU_SECONDS = (
    "finetune_operator_lost_gpu_seconds_total",
    "Part of the GPU time that attempts held after their last checkpoint and that had to be done again, by namespace.",
)
CHECKPOINT_AGE_SECONDS = (
    "finetune_operator_checkpoint_age_seconds",
    "Work of a running job that is not saved: time since its newest checkpoint, or since its attempt began to run.",
)

SUCCEEDED = "Succeeded"
"""``cause`` of an attempt that ended well; its record in the status has none."""
NO_ANSWER = "error"
"""``code`` of a request that got no answer."""
WATCHED_KINDS = (JOB_KIND, RUNTIME_KIND, "Job", "Pod")

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Metrics:
    """One set of metrics with a registry of its own, so that tests do not share any."""

    def __init__(self, clock: Callable[[], datetime] = _utc_now) -> None:
        self._clock = clock
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._reconcile_seconds = Histogram(*RECONCILE_SECONDS, buckets=_BUCKETS, registry=registry)
        self._failed_passes = Counter(*FAILED_PASSES, ["reason"], registry=registry)
        self._queue_depth = Gauge(*QUEUE_DEPTH, registry=registry)
        self._tasks = Gauge(*TASKS, registry=registry)
        self._known_jobs = Gauge(*KNOWN_JOBS, ["table"], registry=registry)
        self._watch_events = Counter(*WATCH_EVENTS, ["kind"], registry=registry)
        self._api_requests = Counter(*API_REQUESTS, ["verb", "code"], registry=registry)
        self._api_request_seconds = Histogram(*API_REQUEST_SECONDS, ["verb"], buckets=_BUCKETS, registry=registry)
        self._attempts_ended = Counter(*ATTEMPTS_ENDED, ["cause"], registry=registry)
        self._gpu_seconds = Counter(*GPU_SECONDS, ["namespace"], registry=registry)
        self._lost_gpu_seconds = Counter(*LOST_GPU_SECONDS, ["namespace"], registry=registry)
        self._checkpoint_age = Gauge(*CHECKPOINT_AGE_SECONDS, ["namespace", "name"], registry=registry)
        self._running: set[ObjectKey] = set()
        # A rate cannot show the first event of a series that was not there before it.
        for cause in (SUCCEEDED, *(value for name, value in vars(Cause).items() if name.isupper())):
            self._attempts_ended.labels(cause)
        for kind in WATCHED_KINDS:
            self._watch_events.labels(kind)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Ask for the depth of the queue at each scrape."""
        self._queue_depth.set_function(depth)

    def watch_tasks(self, count: Callable[[], int]) -> None:
        """Ask for the number of tasks at each scrape."""
        self._tasks.set_function(count)

    def watch_tables(self, tables: Mapping[str, Callable[[], int]]) -> None:
        """Ask for the number of jobs in each of these tables at each scrape."""
        for name, jobs in tables.items():
            self._known_jobs.labels(name).set_function(jobs)

    def pass_ended(self, seconds: float, failure: str = "") -> None:
        """A pass ended; ``failure`` is a word of a small set, empty for none."""
        self._reconcile_seconds.observe(seconds)
        if failure:
            self._failed_passes.labels(failure).inc()

    def event_came(self, kind: str) -> None:
        """A watch delivered an event."""
        self._watch_events.labels(kind).inc()

    def request_ended(self, verb: str, code: str, seconds: float) -> None:
        """The API server answered, or did not."""
        self._api_requests.labels(verb, code).inc()
        self._api_request_seconds.labels(verb).observe(seconds)

    def status_written(self, namespace: str, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
        """A status write succeeded: count what is new in it."""
        ended = {attempt.number for attempt in before.attempts if attempt.end_time is not None}
        for attempt in after.attempts:
            if attempt.end_time is not None and attempt.number not in ended:
                self._attempts_ended.labels(attempt.cause or SUCCEEDED).inc()
        held = after.totals.gpu_seconds - before.totals.gpu_seconds
        lost = after.totals.lost_gpu_seconds - before.totals.lost_gpu_seconds
        self._gpu_seconds.labels(namespace).inc(max(held, 0))
        self._lost_gpu_seconds.labels(namespace).inc(max(lost, 0))

    def job_looked_at(self, key: ObjectKey, status: FineTuneJobStatus) -> None:
        """After a pass: a job that runs has a checkpoint's age, another one has not."""
        since = unsaved_since(status)
        if since is None:
            self.forget(key)
            return
        self._running.add(key)
        self._checkpoint_age.labels(*key).set_function(lambda: (self._clock() - since).total_seconds())

    def forget(self, key: ObjectKey) -> None:
        """The job ended or is gone, and its series with it: their number is bounded by the jobs that run."""
        if key in self._running:
            self._running.remove(key)
            self._checkpoint_age.remove(*key)


def unsaved_since(status: FineTuneJobStatus) -> datetime | None:
    """From when on a death would lose the work of a running attempt; None: nothing runs."""
    attempt = live_attempt(status)
    if attempt is None or not is_true(status.conditions, ConditionType.RUNNING):
        return None
    saved = status.checkpoint.time if status.checkpoint is not None else None
    times = [time for time in (attempt.bound_time or attempt.start_time, saved) if time is not None]
    return max(times, default=None)
