"""Nodes that kwok simulates, for as many pods as a benchmark wants; the scheduler and all controllers are real.

kwok (https://kwok.sigs.k8s.io) writes the status of each pod after a while, as its *stages* have it. Ours: a pod that
is bound runs at once; a prepare pod and a training pod end well after ``run_seconds``, with the last words of the real
ones; a pod that is asked to go ends as a preempted trainer does. Gangs in the namespace ``LIVE`` train for ever.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from apiserver import ApiServer, end_process, free_port, required_binaries, serving
from e2e.cluster.binaries import ensure_kwok
from e2e.kubectl import Json, Kubectl
from fake_kubelets import add_nodes
from finetune_operator import constants
from jobs import CLAIMS, a_claim, a_job, a_runtime, a_volume
from pod_status import PREPARED, TRAINED

LIVE = "live"
"""Namespace whose training pods do not end by themselves."""
NODES, GPUS_PER_NODE = 24, 200
POOL, PARTS = "gpu", 8
"""The runtime's pools: one of all nodes, and ``gpu-0`` to ``gpu-7`` with a part of them each."""
RUNTIME = "kwok"
STEP_SAVED = 7
_NODE_LABELS = {"test/nodes": "kwok"}
_NODES_ARE_READY = {
    "apiVersion": "kwok.x-k8s.io/v1alpha1",
    "kind": "Stage",
    "metadata": {"name": "ready"},
    "spec": {
        "resourceRef": {"apiGroup": "v1", "kind": "Node"},
        "selector": {"matchExpressions": [{"key": ".status.conditions", "operator": "DoesNotExist"}]},
        "next": {"statusTemplate": "phase: Running"},
    },
}
"""Of nodes that are created ready: without a stage for nodes kwok looks after none."""
_POD = {"apiGroup": "v1", "kind": "Pod"}
_STAGE_KEY = f'.metadata.labels["{constants.STAGE_LABEL}"]'
_PREEMPTED = {
    "outcome": "Preempted",
    "exitCode": 75,
    "step": STEP_SAVED,
    "checkpoint": {"step": STEP_SAVED, "uri": "file:///mnt/finetune/storage/c", "time": "2026-05-01T12:00:00Z"},
}


_LOG = (
    {"kind": "phase", "phase": "train"},
    {"kind": "progress", "step": STEP_SAVED, "totalSteps": 40, "epoch": 0.1, "loss": 1.0},
)
"""What each training pod has said."""


@contextmanager
def kwok_cluster(folder: Path, *, run_seconds: float) -> Iterator[tuple[ApiServer, Kubectl]]:
    """A control plane with a scheduler, nodes and a runtime for gangs of one GPU a pod.

    Raises:
        SystemExit: there is no kube-apiserver; says how to get one.
    """
    binaries = required_binaries()
    with (
        serving(folder, binaries) as server,
        server.scheduling(),
        simulated_nodes(server.kubeconfig, folder, run_seconds=run_seconds) as port,
    ):
        kubectl = Kubectl(server.kubeconfig, binaries / "kubectl")
        pools = [_pool(POOL, _NODE_LABELS)]
        for part in range(PARTS):
            labels = _NODE_LABELS | {"test/part": str(part)}
            names = [f"kwok-{number}" for number in range(part, NODES, PARTS)]
            add_nodes(kubectl, names, gpus=GPUS_PER_NODE, kubelet_port=port, **labels)
            pools.append(_pool(f"{POOL}-{part}", labels))
        kubectl.create(a_volume(RUNTIME))
        kubectl.apply(a_runtime(RUNTIME, pools=pools))
        yield server, kubectl


def _pool(name: str, labels: Json) -> Json:
    size = {"nodes": 1000, "gpusPerNode": 1, "cpuPerGpu": "10m", "memoryPerGpu": "16Mi"}
    return {"name": name, "device": "cuda", "nodeSelector": labels, **size}


def add_namespace(kubectl: Kubectl, name: str) -> str:
    """A new one, with the claims that jobs name."""
    kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    kubectl.in_namespace(name).create(*(a_claim(claim, volume=RUNTIME) for claim in CLAIMS))
    return name


def a_simulated_job(name: str, pool: str = POOL) -> Json:
    """A FineTuneJob for a gang of two pods there."""
    return a_job(name, runtimeRef={"name": RUNTIME}, placement=[{"pool": pool, "nodes": 2}])


@contextmanager
def simulated_nodes(kubeconfig: Path, folder: Path, *, run_seconds: float) -> Iterator[int]:
    """kwok plays the kubelets of all nodes during the block; yields their port, where all pods have the same log."""
    config, log_file, port = folder / "kwok.yaml", folder / "pod.log", free_port()
    log_file.write_text("".join(f"{json.dumps(line)}\n" for line in _LOG))
    config.write_text(yaml.safe_dump_all([_options(port), _logs(log_file), *_stages(run_seconds)]))
    command = [ensure_kwok(), f"--kubeconfig={kubeconfig}", f"--config={config}", "--manage-all-nodes"]
    with (folder / "kwok.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield port
        if process.poll() is not None:
            raise RuntimeError(f"kwok ended: {(folder / 'kwok.log').read_text()[-2000:]}")
    finally:
        end_process(process)


def _options(port: int) -> Json:
    options = {
        "podPlayStageParallelism": 16,
        "nodePlayStageParallelism": 4,
        "nodeLeaseParallelism": 4,
        "podsOnNodeSyncParallelism": 4,
        "nodeLeaseDurationSeconds": 0,
        "enableDebuggingHandlers": True,
        "serverAddress": f"127.0.0.1:{port}",
    }
    return {"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration", "options": options}


def _logs(file: Path) -> Json:
    logs = [{"containers": ["trainer"], "logsFile": str(file), "follow": False}]
    metadata = {"name": "trainer"}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "ClusterLogs", "metadata": metadata, "spec": {"logs": logs}}


def _stages(run_seconds: float) -> list[Json]:
    lasting = {"durationMilliseconds": int(run_seconds * 1000)}
    alive, dying = _is(".metadata.deletionTimestamp", "DoesNotExist"), _is(".metadata.deletionTimestamp", "Exists")
    running, waiting = _is(".status.phase", "In", "Running"), _is(".status.phase", "In", "Pending")
    training = _is(_STAGE_KEY, "In", constants.STAGE_TRAIN)
    mortal = _is(".metadata.namespace", "NotIn", LIVE)
    return [
        _NODES_ARE_READY,
        _stage("starts", [alive, waiting], _status("Running", "running: {startedAt: {{ Now | Quote }}}")),
        _stage(
            "prepared",
            [alive, running, _is(_STAGE_KEY, "In", constants.STAGE_PREPARE)],
            _ended("Succeeded", 0, PREPARED),
            delay=lasting,
        ),
        _stage("trained", [alive, running, training, mortal], _ended("Succeeded", 0, TRAINED), delay=lasting),
        _stage("plain", [alive, running, _is(_STAGE_KEY, "DoesNotExist")], _ended("Succeeded", 0, {}), delay=lasting),
        _stage("preempted", [dying, running, training], _ended("Failed", 75, _PREEMPTED)),
        _stage("gone", [dying, _is(".status.phase", "In", "Pending", "Succeeded", "Failed")], {"delete": True}),
        _stage("dropped", [dying, running, _is(_STAGE_KEY, "NotIn", constants.STAGE_TRAIN)], {"delete": True}),
    ]


def _is(key: str, operator: str, *values: str) -> Json:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _stage(name: str, conditions: Sequence[Json], following: Json, *, delay: Json | None = None) -> Json:
    spec: Json = {"resourceRef": _POD, "selector": {"matchExpressions": list(conditions)}, "next": following}
    if delay is not None:
        spec["delay"] = delay
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


def _ended(phase: str, exit_code: int, words: Any) -> Json:
    message = json.dumps(json.dumps(words))
    return _status(
        phase,
        f"terminated: {{exitCode: {exit_code}, message: {message}, startedAt: {{{{ Now | Quote }}}}, "
        "finishedAt: {{ Now | Quote }}}",
    )


def _status(phase: str, state: str) -> Json:
    ready = str(phase == "Running").lower()
    return {
        "statusTemplate": f"""
phase: {phase}
startTime: {{{{ Now | Quote }}}}
containerStatuses:
{{{{ range .spec.containers }}}}
- name: {{{{ .name | Quote }}}}
  image: {{{{ .image | Quote }}}}
  imageID: ""
  ready: {ready}
  restartCount: 0
  state: {{{state}}}
{{{{ end }}}}
"""
    }
