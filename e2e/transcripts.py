"""Writes ``docs/transcripts.md`` from the cluster that ``make demo`` left up: what kubectl prints to a user."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from e2e.cluster.binaries import bin_directory
from e2e.cluster.local import LocalCluster
from e2e.demo import CLUSTER, JOB
from e2e.kubectl import Kubectl
from e2e.stack import ROOT

HEAD = """# What a user sees

Printed by `kubectl` after `make demo`: a run that lost a pod in the middle of its first attempt. Written by
`make docs-transcripts`.
"""

COMMANDS = (
    "get ftj",
    "get ftj -o wide",
    f"wait --for=condition=Complete ftj/{JOB} --timeout=10s",
    f"describe ftj {JOB}",
    f"get jobs,pods,services,configmaps -l finetune-operator.io/job={JOB}",
    "get ftr",
)


def main() -> int:
    """Run the commands and write the file."""
    cluster = LocalCluster(CLUSTER)
    kubectl = Kubectl(cluster.kubeconfig(), bin_directory() / "kubectl")
    parts = [HEAD]
    for command in COMMANDS:
        output = "\n".join(line.rstrip() for line in kubectl.run(*shlex.split(command)).strip().splitlines())
        parts.append(f"```\n$ kubectl {command}\n{output}\n```\n")
    target = Path(ROOT) / "docs" / "transcripts.md"
    target.write_text("\n".join(parts), encoding="utf-8")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
