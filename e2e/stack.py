"""From a bare machine to a cluster with the operator installed: what the demo and the end-to-end tests stand on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.binaries import bin_directory, ensure_binaries
from e2e.cluster.images import build_project_images
from e2e.cluster.local import LocalCluster
from e2e.cluster.paths import state_root
from e2e.cluster.shell import step
from e2e.demo_model import ensure_demo_model
from e2e.kubectl import Json, Kubectl, is_true, wait_until

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "finetune-operator"
OPERATOR_NAMESPACE = "finetune-system"
DEPLOYMENT = "deployment/finetune-operator"
HELM_SECONDS = 180


@dataclass(frozen=True)
class Stack:
    """A cluster with the operator, and the folders behind its claims."""

    cluster: LocalCluster
    kubectl: Kubectl
    models: Path
    datasets: Path
    storage: Path

    def helm(self, *arguments: str) -> str:
        """Run Helm against the cluster."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubectl.kubeconfig)}
        done = subprocess.run(
            [bin_directory() / "helm", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HELM_SECONDS + 30,
        )
        if done.returncode != 0:
            raise RuntimeError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def install_operator(self, *settings: str, chart: Path = CHART) -> None:
        """``helm upgrade --install --wait`` with the demo's values."""
        options = [f"--set={setting}" for setting in settings]
        self.helm(
            "upgrade",
            "--install",
            "finetune-operator",
            str(chart),
            f"--namespace={OPERATOR_NAMESPACE}",
            "--create-namespace",
            f"--values={ROOT / 'examples' / 'demo-values.yaml'}",
            "--wait",
            f"--timeout={HELM_SECONDS}s",
            *options,
        )

    def clear_storage(self) -> None:
        """Forget results and checkpoints of earlier clusters: the same job would find them and train nothing."""
        for child in self.storage.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()

    @property
    def system(self) -> Kubectl:
        """The operator's namespace."""
        return self.kubectl.in_namespace(OPERATOR_NAMESPACE)

    def restart_operator(self) -> None:
        """Replace the operator's pod, e.g. after a new image of the same tag was loaded."""
        self.system.run("rollout", "restart", DEPLOYMENT)
        self._wait_for_rollout()

    def operator_pods(self) -> list[Json]:
        """One, as a rule."""
        return self.system.list("pods", "app.kubernetes.io/name=finetune-operator")

    def wait_for_operator(self, seconds: float = 60) -> None:
        """Until one is at work."""
        wait_until(lambda: any(is_true(pod, "Ready") for pod in self.operator_pods()), seconds, "an operator")

    @contextmanager
    def operator_away(self) -> Iterator[None]:
        """Nobody looks during the block."""
        self.system.run("scale", DEPLOYMENT, "--replicas=0")
        wait_until(lambda: not self.operator_pods(), 60, "operator gone")
        try:
            yield
        finally:
            self.system.run("scale", DEPLOYMENT, "--replicas=1")
            self._wait_for_rollout()

    def _wait_for_rollout(self) -> None:
        self.system.run("rollout", "status", DEPLOYMENT, "--timeout=55s")


def build_everything() -> dict[str, Path]:
    """Binaries, images and the demo's model, side by side; returns image name -> archive."""
    with ThreadPoolExecutor(3) as pool:
        model = pool.submit(ensure_demo_model)
        images = pool.submit(build_project_images)
        ensure_binaries()
        model.result()
        return images.result()


def bring_up(name: str, *, nodes: int = 2, gpus: int = 8) -> Stack:
    """Build, start the cluster, load the images, install the operator; what is there already is kept.

    Raises:
        ClusterError: the machine lacks something; says what and how to get it.
    """
    archives = build_everything()
    cluster = LocalCluster(name)
    cluster.up(nodes, gpus)
    folder = state_root() / "volumes" / name
    stack = Stack(
        cluster=cluster,
        kubectl=Kubectl(cluster.kubeconfig(), bin_directory() / "kubectl"),
        models=folder / "models",
        datasets=folder / "datasets",
        storage=folder / "finetune-storage",
    )
    for claim in ("models", "datasets", "finetune-storage"):
        cluster.volume(claim, folder / claim, "default")
    _fill(stack)
    cluster.load_image(list(archives.values()))
    with step("operator installed by Helm"):
        stack.install_operator()
        stack.restart_operator()
    return stack


def _fill(stack: Stack) -> None:
    """The demo's model and dataset onto the claims."""
    source = ensure_demo_model()
    target = stack.models / source.name
    if not target.exists():
        shutil.copytree(source, target)
    for data in (ROOT / "examples" / "data").glob("*.jsonl"):
        shutil.copyfile(data, stack.datasets / data.name)
