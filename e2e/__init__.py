"""End-to-end tests on a real cluster, and the cluster itself (`e2e.cluster`)."""
