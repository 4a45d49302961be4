"""The operator may do what it does, and nothing else.

``CALLS`` is the table of API calls of ``operator/finetune_operator/shell``. Whoever adds a call adds a row here and a
verb in the chart; `test_the_table_knows_every_kind` fails for a kind that nobody thought of.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from finetune_operator.shell import kube

pytestmark = pytest.mark.unit

OURS = "finetune-operator.io"
CRDS = "apiextensions.k8s.io"


class Call(NamedTuple):
    """One verb on one resource."""

    group: str
    resource: str
    verb: str


# In the namespace of a job.
NAMESPACED_CALLS = {
    Call(OURS, "finetunejobs", "list"),  # handlers.py: kopf's watch; inventory.py
    Call(OURS, "finetunejobs", "watch"),
    Call(OURS, "finetunejobs", "get"),  # gather.py: every pass
    Call(OURS, "finetunejobs/status", "update"),  # execute.py: PUT with resourceVersion
    Call("batch", "jobs", "list"),  # handlers.py, gather.py, inventory.py
    Call("batch", "jobs", "watch"),
    Call("batch", "jobs", "get"),  # execute.py: whose is it, after AlreadyExists
    Call("batch", "jobs", "create"),  # builders/prepare.py, builders/attempt.py
    Call("batch", "jobs", "delete"),  # core: an attempt that ended, suspend, a new run
    Call("", "pods", "list"),  # handlers.py, gather.py, inventory.py
    Call("", "pods", "watch"),
    Call("", "pods/log", "get"),  # logs.py
    Call("", "configmaps", "get"),  # gather.py: the snapshot; execute.py: after AlreadyExists
    Call("", "configmaps", "create"),  # builders: snapshot, prepare, attempt
    Call("", "configmaps", "delete"),  # core/run_change.py: the snapshot of a run that was given up
    Call("", "configmaps", "deletecollection"),  # execute.py: what pods that are gone no longer read
    Call("", "services", "deletecollection"),
    Call("", "services", "get"),  # execute.py: after AlreadyExists
    Call("", "services", "create"),  # builders/attempt.py
    Call("", "persistentvolumeclaims", "get"),  # gather.py: is the claim there?
    Call("", "events", "create"),  # execute.py
}

# Cluster-scoped, whatever namespaces are served.
CLUSTER_CALLS = {
    Call(OURS, "finetuneruntimes", "list"),  # handlers.py: kopf's watch; inventory.py
    Call(OURS, "finetuneruntimes", "watch"),
    Call(OURS, "finetuneruntimes", "get"),  # gather.py: the job's runtime
    Call(OURS, "finetuneruntimes", "create"),  # default_runtime.py
    Call("", "namespaces", "get"),  # gather.py: labels for allowedNamespaces
    Call("", "nodes", "get"),  # gather.py: nodes of pods in doubt
}

# Only where all namespaces are served: kopf looks for CRDs that come after it (settings.scanning).
SCANNING_CALLS = {Call(CRDS, "customresourcedefinitions", "list"), Call(CRDS, "customresourcedefinitions", "watch")}

NEVER = {
    "secrets",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
    "pods/exec",
    "pods/attach",
    "pods/portforward",
    "pods/proxy",
    "pods/ephemeralcontainers",
    "nodes/proxy",
    "services/proxy",
    "serviceaccounts",
    "serviceaccounts/token",
    "users",
    "groups",
    "certificatesigningrequests",
    "certificatesigningrequests/approval",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
}
"""Each of them leads to a Secret, into a container, or to more rights."""
NEVER_VERBS = {"*", "bind", "escalate", "impersonate", "approve", "sign", "use"}
WRITES = {"create", "update", "patch", "delete", "deletecollection"}
READ_ONLY = {"nodes", "namespaces", "persistentvolumeclaims", "customresourcedefinitions", "pods", "pods/log"}
"""What the operator looks at and never touches; pods are the Job controller's to make and to delete."""
SYSTEM_ROLES = "ftop-finetune-operator-finetune-system"


def granted(rules: Iterable[dict[str, Any]]) -> set[Call]:
    """Rules, multiplied out."""
    return {
        Call(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rules_by_place(manifests: list[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    """Namespace (None: everywhere) -> what the operator's service account is granted there, through its bindings."""
    roles = {
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]): item["rules"]
        for item in manifests
        if item["kind"] in ("Role", "ClusterRole")
    }
    account = next(item["metadata"] for item in manifests if item["kind"] == "ServiceAccount")
    subject = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    places: dict[str | None, list[dict[str, Any]]] = {}
    for binding in manifests:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            assert binding["subjects"] == [subject]
            place, ref = binding["metadata"].get("namespace"), binding["roleRef"]
            scope = place if ref["kind"] == "Role" else None
            places.setdefault(place, []).extend(roles[ref["kind"], scope, ref["name"]])
    return places


def test_cluster_wide_rights_are_exactly_the_calls(render: Any) -> None:
    """Nothing that is called is forbidden, nothing that is granted is unused."""
    places = rules_by_place(render())
    assert set(places) == {None}
    assert granted(places[None]) == NAMESPACED_CALLS | CLUSTER_CALLS | SCANNING_CALLS


def test_with_namespaces_only_reading_is_granted_cluster_wide(render: Any) -> None:
    """Rights to write exist in the named namespaces alone."""
    places = rules_by_place(render({"namespaces": ["team-a", "team-b"]}))
    assert set(places) == {None, "team-a", "team-b"}
    assert granted(places[None]) == CLUSTER_CALLS
    assert granted(places["team-a"]) == granted(places["team-b"]) == NAMESPACED_CALLS
    [namespaces] = [rule for rule in places[None] if rule["resources"] == ["namespaces"]]
    assert namespaces["resourceNames"] == ["team-a", "team-b"]


def test_runtimes_are_created_only_when_there_is_a_default_one(render: Any) -> None:
    """Without a default runtime the operator reads them only."""
    [rules] = rules_by_place(render({"defaultRuntime": {"create": False}})).values()
    assert granted(rules) == (NAMESPACED_CALLS | CLUSTER_CALLS | SCANNING_CALLS) - {
        Call(OURS, "finetuneruntimes", "create")
    }


@pytest.mark.parametrize("values", [{}, {"namespaces": ["team-a"]}], ids=["all-namespaces", "one-namespace"])
def test_no_role_holds_secrets_wildcards_or_ways_up(render: Any, values: dict[str, Any]) -> None:
    """This includes the roles for people."""
    roles = [item for item in render(values) if item["kind"] in ("Role", "ClusterRole")]
    calls = granted(rule for role in roles for rule in role["rules"])
    assert calls
    assert not {call for call in calls if "*" in call or call.resource in NEVER or call.verb in NEVER_VERBS}
    assert not {rule.get("nonResourceURLs") for role in roles for rule in role["rules"]} - {None}
    assert not {call for call in calls if call.resource in READ_ONLY and call.verb in WRITES}


def test_people_write_jobs_and_nothing_else(render: Any) -> None:
    """No role for people writes a runtime, a status, or anything that is not of this group."""
    roles = [item for item in render() if item["kind"] == "ClusterRole" and item["metadata"]["name"] != SYSTEM_ROLES]
    calls = granted(rule for role in roles for rule in role["rules"])
    assert {call.group for call in calls} == {OURS}
    assert {call.resource for call in calls if call.verb in WRITES} == {"finetunejobs"}
    assert all("aggregationRule" not in role for role in roles)


def test_roles_for_people_join_the_built_in_ones_unless_told_not_to(render: Any) -> None:
    """Whoever holds `edit` may run jobs, whoever holds `view` may watch them."""

    def joined(values: dict[str, Any]) -> dict[str, set[str]]:
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {
            item["metadata"]["name"].removeprefix(f"{SYSTEM_ROLES}-"): {
                label.removeprefix(prefix) for label in item["metadata"]["labels"] if label.startswith(prefix)
            }
            for item in render(values)
            if item["kind"] == "ClusterRole" and item["metadata"]["name"] != SYSTEM_ROLES
        }

    assert joined({}) == {"jobs-edit": {"edit", "admin"}, "jobs-view": {"view"}, "runtimes-view": {"view"}}
    assert not set().union(*joined({"rbac": {"aggregate": False}}).values())


def test_the_table_knows_every_kind() -> None:
    """The client's table of paths and the verbs used on it hold nothing that `CALLS` lacks."""
    plurals = {path.rsplit("/", 1)[1] for path in kube._COLLECTIONS.values()}
    assert plurals <= {call.resource for call in NAMESPACED_CALLS}
    assert _client_methods() == {"get", "get_metadata", "pages", "get_text", "create", "replace", "delete"}


def _client_methods() -> set[str]:
    """Methods of the client that send requests."""
    tree = ast.parse(Path(kube.__file__).read_text(encoding="utf-8"))
    [client] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Kube"]
    methods = [node for node in client.body if isinstance(node, ast.AsyncFunctionDef)]
    return {node.name for node in methods if not node.name.startswith("_")} - {"close", "connect"}
