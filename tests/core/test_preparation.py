"""The CPU stage: facts, faults, results found, retries, failures."""

from __future__ import annotations

import pytest

from kstatus import kstatus
from makers import (
    Story,
    a_fault,
    a_job,
    a_prepare_job,
    a_prepare_pod,
    a_result,
    accepted,
    at,
    last_words,
    prepared,
    raw_facts,
)

pytestmark = pytest.mark.unit

MEND_IT = "; mend what the message names, then change spec.runId to run again"
MEND_THE_CAUSE = "; mend the cause, then change spec.runId to run again"


def test_job_and_its_configuration_are_created_once() -> None:
    """By names that a later pass meets again; the configuration has a name of its own."""
    story = accepted()
    story.sees()
    config, job = story.created()
    assert config.startswith("ConfigMap/support-prepare-")
    assert job == "Job/support-prepare"
    assert (story.status.phase, story.condition("Reconciling")[0]) == ("Preparing", "False")


def test_a_job_that_is_checked_is_current() -> None:
    """``helm --wait`` returns once children work."""
    story = accepted()
    story.sees()
    assert kstatus(story.status, 1) == "Current"


def test_nothing_is_written_while_the_pod_works() -> None:
    """A pass without news is silent."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(),), pods=(a_prepare_pod(),))
    story.sees(jobs=(a_prepare_job(),), pods=(a_prepare_pod(),))
    assert story.actions.status is None


def test_job_that_somebody_suspended_says_so() -> None:
    """Only they know what for."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_suspended=True),))
    assert "Job support-prepare was suspended by somebody else" in story.status.message
    assert story.deleted() == []


def test_facts_are_taken_over() -> None:
    """And the plan gets its steps."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_complete=True),), pods=(a_prepare_pod().exited(0, words=prepared()),))
    assert story.status.facts is not None
    assert story.status.facts.dataset.train_rows == 216
    assert story.status.plan is not None
    assert story.status.plan.total_steps == 41
    assert "Job/support-a1" in story.created(), "the first attempt follows in the same pass"


def test_packs_are_taken_over() -> None:
    """Steps count sequences."""
    story = accepted()
    raw = raw_facts()
    dataset = raw["dataset"] | {"packsUri": "file:///mnt/finetune/storage/cache/packs.json", "trainPacks": 31}
    words = prepared(dataset=dataset)
    story.sees(jobs=(a_prepare_job(is_complete=True),), pods=(a_prepare_pod().exited(0, words=words),))
    assert story.status.plan is not None
    assert story.status.plan.total_steps == 6
    assert story.status.facts is not None
    assert story.status.facts.dataset.train_packs == 31


def test_facts_are_taken_before_the_job_says_that_it_is_complete() -> None:
    """The pod's word is enough."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(),), pods=(a_prepare_pod().exited(0, words=prepared()),))
    assert story.status.facts is not None


def test_warnings_reach_the_user() -> None:
    """Rows that were cut, for one."""
    story = accepted()
    words = prepared(warnings=["3 rows were cut to 2048 tokens"])
    story.sees(jobs=(a_prepare_job(),), pods=(a_prepare_pod().exited(0, words=words),))
    warning = next(event for event in story.actions.events if event.reason == "DatasetWarning")
    assert (warning.type, warning.message) == ("Warning", "3 rows were cut to 2048 tokens")


def test_result_of_an_earlier_execution_completes_the_run() -> None:
    """No GPU is asked for."""
    story = accepted()
    words = prepared(result=a_result())
    story.sees(jobs=(a_prepare_job(is_complete=True),), pods=(a_prepare_pod().exited(0, words=words),))
    assert story.condition("Complete") == ("True", "ResultFound")
    assert story.status.result is not None
    assert story.status.result.uri.startswith("pvc://finetune-storage/output/")
    assert "spec.runId" in story.status.message


@pytest.mark.parametrize("is_failed", [False, True], ids=["before-the-job-failed", "after"])
def test_fault_of_the_user_ends_the_run(is_failed: bool) -> None:
    """With field, value and remedy; bad data costs no GPU."""
    story = accepted()
    pod = a_prepare_pod().exited(65, words=prepared(outcome="Failed", fault=a_fault()))
    story.sees(jobs=(a_prepare_job(is_failed=is_failed),), pods=(pod,))
    assert story.condition("Failed") == ("True", "UserError")
    assert kstatus(story.status, 1) == "Failed"
    for word in ("spec.dataset", "support.jsonl", "line 7 has no answer", "add an assistant message", MEND_IT):
        assert word in story.status.message


def test_how_to_go_on_is_said_however_much_the_pod_says() -> None:
    """A status is bounded; what comes last must not be what is left out."""
    story = accepted()
    pod = a_prepare_pod().exited(65, words=prepared(outcome="Failed", fault=a_fault(message="x" * 3000)))
    story.sees(jobs=(a_prepare_job(),), pods=(pod,))
    assert story.status.message.endswith(MEND_IT)


def test_failure_that_kubernetes_retries_is_only_told() -> None:
    """The Hub did not answer; the Job tries again."""
    story = accepted()
    words = '{"outcome": "Failed", "message": "huggingface.co does not answer"}'
    story.sees(jobs=(a_prepare_job(),), pods=(a_prepare_pod().exited(1, words=words),))
    assert story.status.phase == "Preparing"
    assert "does not answer" in story.status.message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ('{"outcome": "Failed", "message": "no route"}', ["no route"]),
        (
            "",
            [
                "ended with exit code 1 (Error) and left no message",
                "kubectl -n research logs support-prepare-x",
                "kubectl -n research describe pod support-prepare-x",
            ],
        ),
    ],
    ids=["with-last-words", "without"],
)
def test_failure_beyond_all_retries_ends_the_run(words: str, told: list[str]) -> None:
    """Not the user's fault, but only a person can go on."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_failed=True),), pods=(a_prepare_pod().exited(1, words=words),))
    assert story.condition("Failed") == ("True", "PrepareFailed")
    for word in [*told, MEND_THE_CAUSE]:
        assert word in story.status.message


@pytest.mark.parametrize("is_failed", [False, True], ids=["while-it-is-retried", "at-the-end"])
def test_memory_that_does_not_suffice_is_told_with_the_remedy(is_failed: bool) -> None:
    """The kernel leaves the pod no time for words."""
    story = accepted()
    pods = (a_prepare_pod().oom_killed(),)
    story.sees(jobs=(a_prepare_job(is_failed=is_failed),), pods=pods)
    assert story.status.phase == ("Failed" if is_failed else "Preparing")
    for word in ("2Gi", "OOMKilled", "spec.prepareMemory of FineTuneRuntime 'default'", "spec.runId"):
        assert word in story.status.message


def test_failed_job_whose_pods_are_gone_says_so() -> None:
    """Somebody cleaned up; the Job's events are what is left."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_failed=True),))
    for word in ("left no message", "kubectl -n research describe job support-prepare", MEND_THE_CAUSE):
        assert word in story.status.message


def test_pod_that_vanished_unread_runs_once_more() -> None:
    """The operator was down; the stage is idempotent."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_complete=True),))
    assert story.deleted() == ["Job/support-prepare"]
    assert story.status.phase == "Preparing"


@pytest.mark.parametrize("words", ["", "done", last_words(0)], ids=["none", "text", "another-message"])
def test_pod_whose_words_cannot_be_read_ends_the_run(words: str) -> None:
    """Once more would say the same: an image of another version."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_complete=True),), pods=(a_prepare_pod().exited(0, words=words),))
    assert story.condition("Failed") == ("True", "PrepareFailed")
    for word in ("spec.image of FineTuneRuntime 'default'", "registry.example.org/finetune-trainer@", MEND_THE_CAUSE):
        assert word in story.status.message


def test_words_of_another_run_are_not_heard() -> None:
    """Pods of a run that was given up linger for some seconds."""
    story = accepted()
    story.sees(pods=(a_prepare_pod().of_run("0" * 12).exited(0, words=prepared()),))
    assert story.status.facts is None
    assert "Job/support-prepare" in story.created()


def test_job_that_is_going_is_waited_for() -> None:
    """Its name is free again in a moment."""
    story = accepted()
    story.sees(jobs=(a_prepare_job(is_being_deleted=True),))
    assert (story.created(), story.actions.requeue_after) == ([], 1)


def test_pod_on_a_lost_node_is_started_elsewhere() -> None:
    """Its object lingers until the node returns, and is no pod of the next Job, which has the same name."""
    story = accepted()
    lost = a_prepare_pod().deleted(gone_by=30)
    story.sees(at(10), jobs=(a_prepare_job(),), pods=(lost,))
    assert (story.deleted(), story.actions.requeue_after) == ([], 20)
    story.sees(at(30), jobs=(a_prepare_job(),), pods=(lost,))
    assert story.deleted() == ["Job/support-prepare"]
    story.sees(at(31), pods=(lost,))
    assert "Job/support-prepare" in story.created()
    story.sees(at(32), jobs=(a_prepare_job(uid="second"),), pods=(lost,))
    assert story.deleted() == []


def test_trouble_of_the_pod_is_told() -> None:
    """In the kubelet's words."""
    story = accepted()
    pod = a_prepare_pod().waiting("ImagePullBackOff", "no such image")
    story.sees(jobs=(a_prepare_job(),), pods=(pod,))
    assert "ImagePullBackOff: no such image" in story.status.message


def test_starting_up_is_no_trouble() -> None:
    """Every pod does it."""
    story = accepted(a_job())
    story.sees(jobs=(a_prepare_job(),), pods=(a_prepare_pod().waiting("ContainerCreating"),))
    assert "ContainerCreating" not in story.status.message


def test_job_of_a_run_that_was_not_begun_is_removed() -> None:
    """Its facts are those of another run: it was accepted by a pass that died, and its snapshot is lost."""
    story = Story(a_job().with_run("2"))
    other = "0" * 12
    story.sees(
        jobs=(a_prepare_job(run=other, is_complete=True),),
        pods=(a_prepare_pod().of_run(other).exited(0, words=prepared()),),
    )
    assert (story.status.facts, story.deleted()) == (None, ["Job/support-prepare"])
