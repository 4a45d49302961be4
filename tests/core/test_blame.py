"""Which pod ended an attempt, and why: the table of the design, one row after the other."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.constants import Cause
from finetune_operator.core.blame import Gang, Pending, Verdict, blame
from finetune_operator.core.observed import NodeState
from makers import PodMaker, a_fault, a_pod, an_attempt_job, at, nodes

pytestmark = pytest.mark.unit


def _blame(*pods: PodMaker, after: float = 20, is_spot: bool = False, **fields: Any) -> Verdict | Pending | None:
    since = at(fields.pop("since", 0))
    known = {name: fields.pop(name) for name in ("nodes", "processes_per_node", "has_trained") if name in fields}
    views = [pod.build() for pod in pods]
    gang = Gang(
        job=an_attempt_job(**fields),
        pods=[pod for pod in views if not pod.is_vanished],
        vanished=[pod for pod in views if pod.is_vanished],
        is_spot=is_spot,
        **known,
    )
    return blame(gang, incomplete_since=since, now=at(after))


def _verdict(*pods: PodMaker, **fields: Any) -> Verdict:
    found = _blame(*pods, **fields)
    assert isinstance(found, Verdict), found
    return found


RUNNING_PEER = a_pod(1)
GONE = {"node-0": NodeState(exists=False, ready=False)}
RECLAIMED = {"node-0": NodeState(exists=True, ready=True, taints=frozenset({"karpenter.sh/disrupted"}))}
RECLAIMED_AND_LOST = {"node-0": NodeState(exists=True, ready=False, taints=frozenset({"karpenter.sh/disrupted"}))}
OUT_OF_SERVICE = {"node-0": NodeState(exists=True, ready=True, taints=frozenset({"node.kubernetes.io/out-of-service"}))}

ROWS = [
    # NodeLost
    ("deleted by pod GC, its node is lost", [a_pod().disrupted("DeletionByPodGC")], {}, Cause.NODE_LOST),
    (
        "deleted by the taint manager on a node that is not ready, its node is lost",
        [a_pod().disrupted("DeletionByTaintManager")],
        {"nodes": nodes(node_0=False)},
        Cause.NODE_LOST,
    ),
    (
        "deleted by the taint manager from a node that is gone, its node is lost",
        [a_pod().disrupted("DeletionByTaintManager")],
        {"nodes": GONE},
        Cause.NODE_LOST,
    ),
    ("terminating past its grace period, its node is lost", [a_pod().deleted(gone_by=15)], {}, Cause.NODE_LOST),
    (
        "a lost node of a spot pool was preempted",
        [a_pod().disrupted("DeletionByPodGC")],
        {"is_spot": True},
        Cause.PREEMPTED,
    ),
    (
        "terminating past its grace period on spot was preempted",
        [a_pod().deleted(gone_by=15)],
        {"is_spot": True},
        Cause.PREEMPTED,
    ),
    # Preempted
    ("deleted while it waited for a node was preempted", [a_pod().pending().deleted(gone_by=15)], {}, Cause.PREEMPTED),
    (
        "deleted by the taint manager from a node that is ready was preempted",
        [a_pod().disrupted("DeletionByTaintManager")],
        {"nodes": nodes(node_0=True)},
        Cause.PREEMPTED,
    ),
    ("evicted through the API was preempted", [a_pod().disrupted("EvictionByEvictionAPI")], {}, Cause.PREEMPTED),
    ("preempted by the scheduler", [a_pod().disrupted("PreemptionByScheduler")], {}, Cause.PREEMPTED),
    ("ended by the kubelet was preempted", [a_pod().disrupted("TerminationByKubelet")], {}, Cause.PREEMPTED),
    ("shut down with its node was preempted", [a_pod().shut_down_with_its_node()], {}, Cause.PREEMPTED),
    ("exit 75 was preempted", [a_pod().exited(75)], {}, Cause.PREEMPTED),
    # Preempted, because the node is being taken away
    ("asked to go by a reclaimed node", [a_pod().deleted(gone_by=50)], {"nodes": RECLAIMED}, Cause.PREEMPTED),
    ("past its grace on one", [a_pod().deleted(gone_by=15)], {"nodes": RECLAIMED_AND_LOST}, Cause.PREEMPTED),
    ("vanished from a node that is being reclaimed", [a_pod().vanished()], {"nodes": RECLAIMED}, Cause.PREEMPTED),
    ("vanished with a reclaimed node", [a_pod().vanished()], {"nodes": RECLAIMED_AND_LOST}, Cause.PREEMPTED),
    ("a bare 137 on a node that is being reclaimed", [a_pod().exited(137)], {"nodes": RECLAIMED}, Cause.PREEMPTED),
    (
        "failed without a container state on a node that is being reclaimed",
        [a_pod().failed_silently()],
        {"nodes": RECLAIMED},
        Cause.PREEMPTED,
    ),
    (
        "lost by containerd on a node that is being reclaimed",
        [a_pod().exited(255).never_ran("Unknown")],
        {"nodes": RECLAIMED},
        Cause.PREEMPTED,
    ),
    (
        "deleted by the taint manager from a reclaimed node that does not answer",
        [a_pod().disrupted("DeletionByTaintManager")],
        {"nodes": RECLAIMED_AND_LOST},
        Cause.PREEMPTED,
    ),
    ("keeps its own cause on a reclaimed node", [a_pod().exited(77)], {"nodes": RECLAIMED}, Cause.OUT_OF_MEMORY),
    ("OOMKilled stays that on a reclaimed node", [a_pod().oom_killed()], {"nodes": RECLAIMED}, Cause.OUT_OF_MEMORY),
    (
        "with a traceback is the application on a reclaimed node, too",
        [a_pod().exited(1, message="KeyError: 'x'")],
        {"nodes": RECLAIMED},
        Cause.APPLICATION,
    ),
    (
        "whose worker was killed by nobody knows whom stays unknown on a reclaimed node",
        [a_pod().exited(137, message="rank 0 was ended by SIGKILL")],
        {"nodes": RECLAIMED},
        Cause.UNKNOWN,
    ),
    ("vanished from a node that is out of service", [a_pod().vanished()], {"nodes": OUT_OF_SERVICE}, Cause.NODE_LOST),
    # OutOfMemory
    ("exit 69 is the infrastructure's fault", [a_pod().exited(69)], {}, Cause.NO_DEVICE),
    ("exit 77 is out of memory", [a_pod().exited(77)], {}, Cause.OUT_OF_MEMORY),
    ("OOMKilled is out of memory", [a_pod().oom_killed()], {}, Cause.OUT_OF_MEMORY),
    # Hang
    ("exit 78 is a hang", [a_pod().exited(78)], {}, Cause.HANG),
    # Application
    (
        "another exit code with a traceback is the application",
        [a_pod().exited(1, message="KeyError: 'x'")],
        {},
        Cause.APPLICATION,
    ),
    ("exit 79 is the application", [a_pod().exited(79)], {}, Cause.APPLICATION),
    # UserError
    ("exit 64 is the user's", [a_pod().exited(64, fault=a_fault())], {}, Cause.USER_ERROR),
    ("exit 65 is the user's", [a_pod().exited(65, fault=a_fault())], {}, Cause.USER_ERROR),
    (
        "evicted by its kubelet for a limit of its own is the application",
        [a_pod().evicted_for_its_own_limit('Usage of EmptyDir volume "tmp" exceeds the limit "10Gi".')],
        {},
        Cause.APPLICATION,
    ),
    # ContractSkew
    (
        "exit 64 after a step was trained is not the user's",
        [a_pod().exited(64, fault=a_fault())],
        {"has_trained": True},
        Cause.CONTRACT_SKEW,
    ),
    (
        "exit 65 stays the user's",
        [a_pod().exited(65, fault=a_fault())],
        {"has_trained": True},
        Cause.USER_ERROR,
    ),
    (
        "never ran for its container runtime is unknown",
        [a_pod().exited(128).never_ran("StartError")],
        {},
        Cause.UNKNOWN,
    ),
    (
        "lost by containerd, as after a reboot of its node, is unknown",
        [a_pod().exited(255).never_ran("Unknown")],
        {},
        Cause.UNKNOWN,
    ),
    (
        "lost by containerd is unknown whatever it had written before",
        [a_pod().exited(255, message="KeyError: 'x'").never_ran("Unknown")],
        {},
        Cause.UNKNOWN,
    ),
    ("exit 1 without last words is unknown", [a_pod().exited(1)], {}, Cause.UNKNOWN),
    ("exit 1 with words that are none of ours is unknown", [a_pod().exited(1, words="Aborted")], {}, Cause.UNKNOWN),
    ("exit 139 without last words is unknown", [a_pod().exited(139)], {}, Cause.UNKNOWN),
    # what a watch saw before the pod went
    (
        "vanished with its last words is judged by them",
        [a_pod().exited(77).vanished()],
        {},
        Cause.OUT_OF_MEMORY,
    ),
    (
        "vanished after pod GC marked it lost its node",
        [a_pod().disrupted("DeletionByPodGC").vanished()],
        {},
        Cause.NODE_LOST,
    ),
    ("vanished together with its node lost it", [a_pod().vanished()], {"nodes": GONE}, Cause.NODE_LOST),
    ("vanished from a healthy node is unknown", [a_pod().vanished()], {"nodes": nodes(node_0=True)}, Cause.UNKNOWN),
    # Unknown
    ("a bare 137 is unknown", [a_pod().exited(137)], {}, Cause.UNKNOWN),
    ("a failed pod without a container state is unknown", [a_pod().failed_silently()], {}, Cause.UNKNOWN),
    ("a pod that vanished unseen is unknown", [], {"failed_indexes": frozenset({0})}, Cause.UNKNOWN),
    ("a failed Job without any pod is unknown", [], {"is_failed": True}, Cause.UNKNOWN),
    # victims
    ("a lost peer alone is unknown", [a_pod().exited(76, message="peer 1 is silent")], {}, Cause.UNKNOWN),
    ("exit 143 alone is unknown", [a_pod().exited(143)], {}, Cause.UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(("pods", "surroundings", "cause"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_pod_that(pods: list[PodMaker], surroundings: dict[str, Any], cause: str) -> None:
    """Every row of the table, with nothing else in sight."""
    assert _verdict(*pods, **surroundings).cause == cause


@pytest.mark.parametrize(
    "pods",
    [[], [a_pod(), a_pod(1)], [a_pod().pending(), a_pod(1)], [a_pod().exited(0), a_pod(1)]],
    ids=["no-pods-yet", "all-run", "one-waits", "one-is-done-already"],
)
def test_a_gang_without_failures_is_not_judged(pods: list[PodMaker]) -> None:
    """Waiting is not failing."""
    assert _blame(*pods) is None


def test_a_pod_that_is_told_to_go_is_not_judged_before_its_grace_period_ends() -> None:
    """It may still end well."""
    assert _blame(a_pod().deleted(gone_by=50), a_pod(1), after=20) is None


@pytest.mark.parametrize("victim", [76, 143, 137], ids=["peer-lost", "terminated", "killed"])
@pytest.mark.parametrize(
    ("culprit", "cause"),
    [
        (a_pod(1).exited(77, after=30), Cause.OUT_OF_MEMORY),
        (a_pod(1).oom_killed(after=30), Cause.OUT_OF_MEMORY),
        (a_pod(1).exited(1, after=30, message="ValueError: x"), Cause.APPLICATION),
        (a_pod(1).disrupted("EvictionByEvictionAPI", after=30), Cause.PREEMPTED),
    ],
    ids=["oom", "oom-killed", "crash", "evicted"],
)
def test_a_victim_is_never_the_cause_even_when_it_ends_first(victim: int, culprit: PodMaker, cause: str) -> None:
    """Its clock may be quicker, or its container die before the culprit's is reported."""
    verdict = _verdict(a_pod(0).exited(victim, after=5), culprit, after=40)
    assert (verdict.cause, verdict.rank) == (cause, 1)


def test_the_earliest_conclusive_evidence_wins() -> None:
    """What comes after it may be its doing."""
    verdict = _verdict(a_pod(0).exited(77, after=12), a_pod(1).exited(79, after=11))
    assert (verdict.cause, verdict.rank, verdict.exit_code, verdict.node) == (Cause.APPLICATION, 1, 79, "node-1")


def test_the_earliest_crash_wins_among_crashes() -> None:
    """The others crashed because of it."""
    crashes = [a_pod(index).exited(1, after=20 - index, message=f"rank {index}") for index in range(3)]
    assert _verdict(*crashes).rank == 2


def test_conclusive_evidence_is_acted_on_at_once() -> None:
    """No second is lost while peers hold their GPUs."""
    assert _verdict(a_pod(0).exited(77, after=20), RUNNING_PEER, after=20).cause == Cause.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "pod",
    [
        a_pod(0).exited(1, message="RuntimeError: connection closed"),
        a_pod(0).exited(76),
        a_pod(0).exited(137),
    ],
    ids=["crash", "peer-lost", "killed"],
)
def test_other_evidence_gets_90_seconds_for_better_to_appear(pod: PodMaker) -> None:
    """Say, the loss of the node that broke the connection."""
    pending = _blame(pod, RUNNING_PEER, after=40)
    assert isinstance(pending, Pending)
    assert pending.recheck_after == 60
    assert isinstance(_blame(pod, RUNNING_PEER, after=100), Verdict)


def test_nothing_is_waited_for_when_all_pods_have_ended() -> None:
    """No better evidence can come."""
    assert (
        _verdict(a_pod(0).exited(76, after=10), a_pod(1).exited(1, after=11, message="x"), after=11).cause
        == Cause.APPLICATION
    )


def test_better_evidence_within_the_settling_time_is_taken() -> None:
    """The node was lost; that its peer crashed is a consequence."""
    crash = a_pod(0).exited(1, after=10, message="RuntimeError: connection closed")
    assert isinstance(_blame(crash, RUNNING_PEER, after=11), Pending)
    verdict = _verdict(crash, a_pod(1).disrupted("DeletionByPodGC", after=60), after=60)
    assert (verdict.cause, verdict.node) == (Cause.NODE_LOST, "node-1")


def test_verdict_carries_the_last_words() -> None:
    """They hold the newest checkpoint and the fault."""
    verdict = _verdict(a_pod().exited(78, message="step took 700 s", step=41))
    assert verdict.message == "step took 700 s"
    assert verdict.termination is not None
    assert verdict.termination.step == 41


def test_disruption_is_told_in_kubernetes_words() -> None:
    """The user can search for them."""
    verdict = _verdict(a_pod().disrupted("EvictionByEvictionAPI", "draining node-0"))
    assert verdict.message == "EvictionByEvictionAPI: draining node-0"


@pytest.mark.parametrize(
    "words",
    ["", "Killed", "[]", "{}", '{"outcome":"Failed","exitCode":"x"}', '{"outcome":"Failed","exitCode":1,"step":-5}'],
    ids=["none", "text", "list", "empty-object", "wrong-type", "impossible-step"],
)
def test_last_words_that_are_none_of_ours_are_ignored(words: str) -> None:
    """The exit code speaks for itself; a pod's text is never trusted."""
    verdict = _verdict(a_pod().exited(77, words=words))
    assert (verdict.cause, verdict.termination, verdict.message) == (Cause.OUT_OF_MEMORY, None, "exit code 77")


def test_vanished_pods_are_named() -> None:
    """The operator was down while they went."""
    verdict = _verdict(a_pod(0).exited(0), failed_indexes=frozenset({1, 3}))
    assert "index 1, 3" in verdict.message


def test_a_vanished_pod_ends_the_attempt_though_its_peers_run() -> None:
    """They wait for it in vain; but not before they had the time to name a better cause."""
    vanished = {"failed_indexes": frozenset({1}), "since": 10}
    assert isinstance(_blame(a_pod(0), after=99, **vanished), Pending)
    assert _verdict(a_pod(0), after=100, **vanished).cause == Cause.UNKNOWN
    assert _verdict(a_pod(0).exited(77, after=12), after=12, **vanished).cause == Cause.OUT_OF_MEMORY


def test_a_failure_without_a_time_is_dated_by_when_it_was_seen() -> None:
    """Some kubelets leave no state of the container."""
    assert isinstance(_blame(a_pod(0).failed_silently(), RUNNING_PEER, after=99, since=10), Pending)
    assert isinstance(_blame(a_pod(0).failed_silently(), RUNNING_PEER, after=100, since=10), Verdict)


def test_an_end_without_last_words_is_told_with_its_exit_code() -> None:
    """All there is: the command may be missing in the image, or the interpreter have crashed."""
    assert (
        _verdict(a_pod().exited(127)).message
        == "pod support-a1-0-x ended with exit code 127 without naming a cause: Error"
    )


def test_a_node_that_is_being_taken_away_is_evidence_at_once() -> None:
    """Its peers hold their GPUs; the message names the taint."""
    found = _verdict(a_pod(0).exited(137, after=19), RUNNING_PEER, nodes=RECLAIMED, after=20)
    assert (found.cause, found.rank, found.node) == (Cause.PREEMPTED, 0, "node-0")
    assert "karpenter.sh/disrupted" in found.message


def test_a_node_that_is_being_taken_away_ends_nothing_as_long_as_its_pod_runs() -> None:
    """Whoever takes it asks the pod to go."""
    assert _blame(a_pod(0), RUNNING_PEER, nodes=RECLAIMED) is None


# --- the rank that its peers lost ---------------------------------------------------------------------------------

LOST_1 = a_pod(0).exited(76, rank=1, message="rank 1 is silent")


def test_the_pod_that_its_peers_lost_is_blamed_as_soon_as_its_node_is_not_ready() -> None:
    """Long before Kubernetes gives the pod up."""
    found = _verdict(LOST_1, a_pod(1), nodes=nodes(node_1=False), after=20)
    assert (found.cause, found.rank, found.node) == (Cause.NODE_LOST, 1, "node-1")


def test_the_pod_that_its_peers_lost_is_given_time_while_its_node_is_ready() -> None:
    """Better evidence may come; when none does, it was cut off."""
    assert isinstance(_blame(LOST_1, a_pod(1), nodes=nodes(node_1=True), after=20), Pending)
    found = _verdict(LOST_1, a_pod(1), nodes=nodes(node_1=True), after=101)
    assert (found.cause, found.rank) == (Cause.NODE_LOST, 1)
    assert "cut off" in found.message


def test_the_pod_that_its_peers_lost_and_nobody_saw_is_blamed_by_its_index() -> None:
    """The operator was down while its object went."""
    found = _verdict(LOST_1, failed_indexes=frozenset({0, 1}))
    assert (found.cause, found.rank, found.node) == (Cause.NODE_LOST, 1, "")


def test_a_lost_rank_is_found_in_the_pod_that_holds_it() -> None:
    """Four ranks on two pods."""
    peer = a_pod(0).exited(76, rank=3, message="rank 3 is silent")
    found = _verdict(peer, a_pod(1), nodes=nodes(node_1=False), processes_per_node=2)
    assert found.rank == 1


def test_a_lost_peer_with_evidence_of_its_own_is_judged_by_that() -> None:
    """Its OOM is why it fell silent."""
    found = _verdict(LOST_1, a_pod(1).oom_killed(after=12))
    assert (found.cause, found.rank) == (Cause.OUT_OF_MEMORY, 1)


def test_of_a_killed_pod_and_its_victim_the_killed_one_is_named() -> None:
    """Whoever ended first."""
    found = _verdict(a_pod(0).exited(76, after=9, rank=1, message="gone"), a_pod(1).exited(137, after=10))
    assert (found.cause, found.rank, found.exit_code) == (Cause.UNKNOWN, 1, 137)


def test_on_spot_a_lost_peer_was_preempted() -> None:
    """There a lost node is what is to be expected."""
    assert _verdict(LOST_1, a_pod(1), nodes=nodes(node_1=False), is_spot=True).cause == Cause.PREEMPTED


def test_a_hang_is_a_victim_of_what_ended_another_pod() -> None:
    """Its watchdog was quicker than the kernel, which killed the peer for its memory."""
    found = _verdict(a_pod(0).exited(78, after=9), a_pod(1).oom_killed(after=10))
    assert (found.cause, found.rank) == (Cause.OUT_OF_MEMORY, 1)
