"""The cluster does what the operator's tests rely on: gangs, DNS, in-cluster API, volumes, and losing nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import PAUSE, TestCluster, cluster_command, eventually
from e2e.stack import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def a_container(script: str, **fields: Any) -> dict[str, Any]:
    """A busybox that runs a script under the restricted profile; its tools need their full name."""
    script = f"b=/bin/busybox; {script}"
    command = ["/bin/busybox", "sh", "-c", script]
    return {"name": "main", "image": PAUSE, "command": command, "securityContext": RESTRICTED, **fields}


def a_pod(name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}


def phase(cluster: TestCluster, namespace: str, pod: str) -> str:
    return str(cluster.get("-n", namespace, "pod", pod).get("status", {}).get("phase", ""))


def apply(cluster: TestCluster, namespace: str, *objects: dict[str, Any]) -> None:
    cluster.apply(*({**obj, "metadata": {**obj["metadata"], "namespace": namespace}} for obj in objects))


def finished(cluster: TestCluster, namespace: str, pod: str) -> dict[str, Any]:
    """Wait for a pod's end and return how its container ended."""
    eventually(lambda: phase(cluster, namespace, pod) in {"Succeeded", "Failed"}, timeout=90)
    status = cluster.get("-n", namespace, "pod", pod)["status"]
    ended: dict[str, Any] = status["containerStatuses"][0]["state"]["terminated"]
    return ended


def test_gang_meets_by_name_on_two_nodes(cluster: TestCluster, namespace: str) -> None:
    """A two-pod Indexed Job with GPUs spreads over nodes and talks through its headless Service."""
    labels = {"job-name": "gang"}
    script = (
        "peer=gang-0.gang; "
        'if [ "$JOB_COMPLETION_INDEX" = 0 ]; then echo rendezvous | $b nc -l -p 9999; exit 0; fi; '
        "for i in $($b seq 60); do $b nc $peer 9999 </dev/null | $b grep rendezvous && exit 0; $b sleep 1; done; exit 1"
    )
    affinity = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    template = {
        "subdomain": "gang",
        "restartPolicy": "Never",
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [affinity]}},
        "containers": [a_container(script, resources={"limits": {"nvidia.com/gpu": 8}})],
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "gang"},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "gang"},
        "spec": {
            "completionMode": "Indexed",
            "completions": 2,
            "parallelism": 2,
            "backoffLimitPerIndex": 0,
            "template": {"spec": template},
        },
    }
    apply(cluster, namespace, service, job)
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Complete", "job/gang", "--timeout=90s")
    pods = cluster.get("-n", namespace, "pods", "-l", "job-name=gang")["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    log = cluster.kubectl("-n", namespace, "logs", "-l", "batch.kubernetes.io/job-completion-index=1")
    assert "rendezvous" in log


@pytest.fixture(scope="session")
def python_image(cluster: TestCluster) -> str:
    """The base image that the project's images are built on, on every node."""
    command = [sys.executable, "-m", "e2e.cluster", "images", "base"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=1800, check=True)
    name, archive = done.stdout.split()
    cluster("load-image", archive)
    return name


ASK_API = """
import json, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
url = "https://kubernetes.default.svc.cluster.local/apis/authentication.k8s.io/v1/selfsubjectreviews"
body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
headers = {"Authorization": "Bearer " + open(folder + "/token").read(), "Content-Type": "application/json"}
request = urllib.request.Request(url, body, headers)
tls = ssl.create_default_context(cafile=folder + "/ca.crt")
print(json.load(urllib.request.urlopen(request, timeout=10, context=tls))["status"]["userInfo"]["username"])
"""


def test_pod_reaches_the_api_with_its_token(cluster: TestCluster, namespace: str, python_image: str) -> None:
    """The API server's Service address, its certificate's names and the token's signature fit together."""
    container = {**a_container(""), "image": python_image, "command": ["python3", "-c", ASK_API]}
    apply(cluster, namespace, a_pod("client", container))
    ended = finished(cluster, namespace, "client")
    log = cluster.kubectl("-n", namespace, "logs", "client")
    assert ended["exitCode"] == 0, log
    assert log.strip() == f"system:serviceaccount:{namespace}:default"


def test_memory_limit_kills(cluster: TestCluster, namespace: str) -> None:
    """Too much memory ends as OOMKilled with status 137, as on any cluster."""
    script = "$b head -c 200m /dev/zero | $b tail -n 1 >/dev/null; exit $?"
    apply(cluster, namespace, a_pod("greedy", a_container(script, resources={"limits": {"memory": "30Mi"}})))
    ended = finished(cluster, namespace, "greedy")
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_eviction_lets_the_pod_say_its_last_word(cluster: TestCluster, namespace: str) -> None:
    """An evicted pod gets SIGTERM, and its condition, exit code and termination message can be seen."""
    trap = "trap 'echo saved > /dev/termination-log; exit 75' TERM"
    script = f"{trap}; echo ready; while true; do $b sleep 0.1; done"
    pod = a_pod("victim", a_container(script))
    # The finalizer holds the pod as a Job's tracking finalizer does; without it the evidence lasts half a second.
    pod["metadata"]["finalizers"] = ["finetune-operator.io/test"]
    apply(cluster, namespace, pod)
    eventually(lambda: phase(cluster, namespace, "victim") == "Running")
    eventually(lambda: "ready" in cluster.kubectl("-n", namespace, "logs", "victim"))
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "victim", "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/victim/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    try:
        ended = finished(cluster, namespace, "victim")
        status = cluster.get("-n", namespace, "pod", "victim")["status"]
        reasons = [c.get("reason") for c in status["conditions"] if c["type"] == "DisruptionTarget"]
        assert reasons == ["EvictionByEvictionAPI"]
        assert (ended["exitCode"], ended["message"].strip()) == (75, "saved")
    finally:
        release = '{"metadata":{"finalizers":null}}'
        cluster.kubectl("-n", namespace, "patch", "pod", "victim", "--type=merge", "-p", release)


def test_volume_is_shared_by_the_nodes(cluster: TestCluster, namespace: str, tmp_path: Path) -> None:
    """What user 65532 writes on one node, a pod on the other reads, and so does the host."""
    cluster("volume", f"shared={tmp_path / 'shared'}", "--namespace", namespace)
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/mnt/v"}]}
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}]
    live = [name for name, node in json.loads(cluster("status"))["nodes"].items() if node["ready"]]
    writer = a_pod("writer", a_container("echo hello > /mnt/v/f", **mount), volumes=volumes, nodeName=live[0])
    apply(cluster, namespace, writer)
    assert finished(cluster, namespace, "writer")["exitCode"] == 0
    reader = a_pod("reader", a_container("$b grep hello /mnt/v/f", **mount), volumes=volumes, nodeName=live[1])
    apply(cluster, namespace, reader)
    assert finished(cluster, namespace, "reader")["exitCode"] == 0
    assert (tmp_path / "shared" / "f").stat().st_uid == 65532


def test_pod_reaches_a_server_on_the_host(cluster: TestCluster, namespace: str) -> None:
    """Tests run object stores and the like beside the cluster; pods find them under one name."""
    address = json.loads(cluster("status"))["hostAddressForPods"].split()[0]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "18080", "--bind", address],
        cwd=ROOT / "e2e",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        fetch = "$b wget -q -O - http://host.finetune.internal:18080/ && exit 0"
        script = f"for i in 1 2 3 4 5; do {fetch}; $b sleep 1; done; exit 1"
        apply(cluster, namespace, a_pod("client", a_container(script)))
        assert finished(cluster, namespace, "client")["exitCode"] == 0
    finally:
        server.kill()
        server.wait(timeout=10)


def test_up_again_changes_nothing(cluster: TestCluster) -> None:
    """`up` on a running cluster is quick and keeps its nodes."""
    before = set(json.loads(cluster("status"))["nodes"])
    started = time.monotonic()
    assert cluster("up") == str(cluster.kubeconfig)
    assert time.monotonic() - started < 30
    assert set(json.loads(cluster("status"))["nodes"]) == before


def test_lost_node_is_silent_and_is_replaced(cluster: TestCluster, namespace: str) -> None:
    """A killed node turns NotReady, its pods are given up, nobody hears a FIN from it; a new node takes over."""
    node = cluster("add-node", "spare")
    tolerations = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for key in ("not-ready", "unreachable")
    ]
    listen = a_container("$b nc -l -p 7777 -e /bin/busybox sh -c 'echo hello; exec /bin/busybox sleep 600'")
    apply(cluster, namespace, a_pod("lost", listen, nodeName=node, tolerations=tolerations))
    address = eventually(lambda: cluster.get("-n", namespace, "pod", "lost").get("status", {}).get("podIP"))
    eventually(lambda: phase(cluster, namespace, "lost") == "Running")
    other = next(n for n, s in json.loads(cluster("status"))["nodes"].items() if s["ready"] and n != node)
    connect = a_container(f"$b sleep 600 | $b nc {address} 7777; echo closed")
    apply(cluster, namespace, a_pod("peer", connect, nodeName=other))
    eventually(lambda: phase(cluster, namespace, "peer") == "Running")
    eventually(lambda: "hello" in cluster.kubectl("-n", namespace, "logs", "peer"))

    cluster("kill-node", node)

    def disrupted() -> bool:
        pod = cluster.get("-n", namespace, "pod", "lost")
        reasons = [c.get("reason") for c in pod["status"]["conditions"] if c["type"] == "DisruptionTarget"]
        return "deletionTimestamp" in pod["metadata"] and reasons == ["DeletionByTaintManager"]

    eventually(disrupted, timeout=60)
    assert "closed" not in cluster.kubectl("-n", namespace, "logs", "peer")
    assert phase(cluster, namespace, "peer") == "Running"
    assert cluster("add-node", node) == node
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=60s")
    apply(cluster, namespace, a_pod("back", a_container("true"), nodeName=node))
    assert finished(cluster, namespace, "back")["exitCode"] == 0


def test_second_cluster_lives_beside_and_leaves_nothing(cluster: TestCluster) -> None:
    """Two clusters do not meet, and `down` says that nothing is left (it fails otherwise)."""
    name = f"{cluster.name[:12]}-two"
    try:
        kubeconfig = cluster_command("up", "--nodes", "1", "--gpus", "4", name=name)
        assert kubeconfig != str(cluster.kubeconfig)
        status = json.loads(cluster_command("status", name=name))
        assert [node["ready"] for node in status["nodes"].values()] == [True]
        assert status["api"] != json.loads(cluster("status"))["api"]
    finally:
        cluster_command("down", name=name)
    assert not Path(kubeconfig).exists()
    assert json.loads(cluster("status"))["apiAnswers"] == "yes"
