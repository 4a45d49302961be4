"""What a cluster back end offers. `local` implements it; `kind` can, where Docker works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Backend(Protocol):
    """One cluster, by name. Every method may be called again without harm."""

    def up(self, nodes: int, gpus: int) -> None:
        """Bring the cluster to at least `nodes` nodes, each with `gpus` (fake) GPUs."""

    def down(self) -> None:
        """Remove the cluster and prove that nothing of it is left."""

    def load_image(self, archives: Sequence[Path]) -> None:
        """Make the images of `docker save` archives known to every node, now and later."""

    def volume(self, name: str, folder: Path, namespace: str) -> None:
        """A claim that every node can mount, on a folder of this machine."""

    def kill_node(self, node: str) -> None:
        """Lose a node as a reclaim without notice loses it. Its Node object stays."""

    def add_node(self, node: str | None) -> str:
        """A fresh node; a killed node's name may be used again. Returns the name."""

    def kubeconfig(self) -> Path:
        """The administrator's client configuration."""

    def status(self) -> dict[str, Any]:
        """What there is: nodes, their state, addresses, loaded images."""
