"""A real Kubernetes cluster with real nodes on one Linux machine: `python -m e2e.cluster --help`."""
