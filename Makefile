# `make help` lists every target. Everything Python runs in .venv, made from pyproject.toml and the constraints files.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A folder with wheels to prefer, e.g. a CPU build of torch: saves the download of CUDA (5 GB). Not needed.
FINETUNE_WHEELS ?=
export FINETUNE_WHEELS
FIND_LINKS := $(if $(FINETUNE_WHEELS),--find-links $(FINETUNE_WHEELS))

.PHONY: help
help: ## List all targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  %-16s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(FIND_LINKS) --constraint constraints.txt --constraint constraints-dev.txt --editable '.[operator,trainer,demo,dev]'
	touch $@

.PHONY: venv
venv: $(VENV)/.installed ## Install the project and everything its tests need into .venv

.PHONY: demo
demo: venv ## A real cluster, a real model, an eviction, a resumed run (root, no GPU, no Docker)
	$(BIN)/python -m e2e.demo

.PHONY: test
test: ## All tests: lint, types, unit, api, trainer, e2e
	$(MAKE) --no-print-directory --jobs=3 --output-sync=line ready
	tests/run-all.sh $(BIN)/python

# On a new machine one of them waits for the network while another computes.
.PHONY: ready
ready: lint types binaries $(if $(filter 0,$(shell id -u)),images)

.PHONY: test-unit
test-unit: venv ## Pure tests only (seconds)
	$(BIN)/python -m pytest -m unit

.PHONY: test-api
test-api: venv binaries ## Against a real etcd and kube-apiserver
	$(BIN)/python -m pytest -m api

.PHONY: test-trainer
test-trainer: venv ## Real torch on the CPU, one and two ranks
	$(BIN)/python -m pytest -m trainer

.PHONY: test-e2e
test-e2e: venv ## On a real cluster with two nodes (root)
	$(BIN)/python -m pytest -m e2e

.PHONY: lint
lint: venv ## Formatting, lint rules and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

.PHONY: types
types: venv ## mypy --strict
	$(BIN)/mypy

.PHONY: format
format: venv ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: generate
generate: venv ## Write crds/ from the API models
	$(BIN)/python -m finetune_operator.api.crd crds charts/finetune-operator/files/crds

# They need nothing but Python itself.
.PHONY: binaries
binaries: ## Build Kubernetes, etcd, CoreDNS and Helm into the cache (minutes, once)
	$(PYTHON) -m e2e.cluster binaries

.PHONY: images
images: ## Build the operator's and the trainer's image (root)
	$(PYTHON) -m e2e.cluster images

.PHONY: cluster-up
cluster-up: venv ## A cluster with the operator and the demo's model and data (root)
	$(BIN)/python -c 'from e2e.demo import CLUSTER; from e2e.stack import bring_up; bring_up(CLUSTER)'

.PHONY: cluster-down
cluster-down: venv ## Remove the cluster and prove that nothing of it is left
	$(BIN)/python -m e2e.cluster down --name demo

.PHONY: docs-transcripts
docs-transcripts: venv ## Write docs/transcripts.md from the cluster that the demo left up
	$(BIN)/python -m e2e.transcripts

.PHONY: bench-operator
bench-operator: venv binaries ## Latency and memory of the operator against a real API server
	$(BIN)/python bench/operator_latency.py

.PHONY: bench-save
bench-save: venv ## How long a checkpoint holds up training, and its size
	$(BIN)/python bench/save_stall.py

.PHONY: bench-trl
bench-trl: venv ## Steps per second and memory beside TRL's SFTTrainer (installs TRL; 20 minutes)
	$(BIN)/pip install --quiet $(FIND_LINKS) --constraint constraints.txt --constraint constraints-dev.txt --editable '.[bench]'
	$(BIN)/python bench/trainer_vs_trl.py

.PHONY: bench-stop
bench-stop: venv ## Seconds from SIGTERM to the end of a job with long micro-steps
	$(BIN)/python bench/stop_time.py

.PHONY: bench-gpu
bench-gpu: venv ## Speed, memory, resume and out-of-memory on one GPU (says so where there is none)
	$(BIN)/python bench/gpu/run.py

.PHONY: prove-trainer
prove-trainer: venv ## Interrupt every case of the matrix at random moments (writes docs/trainer-matrix.json)
	PYTHONPATH=tests:trainer_image $(BIN)/python -m trainer.prove

.PHONY: prove
prove: venv binaries ## The operator dies at each of its writes, and meets every fault of the API (writes docs/proof.md)
	PYTHONPATH=tests:trainer_image:. $(BIN)/python -m proof

.PHONY: bench-control-plane
bench-control-plane: venv binaries ## Up to a thousand jobs at once beside as many plain Jobs (writes docs/control-plane.md)
	$(BIN)/python bench/control_plane.py

.PHONY: prove-lifecycle
prove-lifecycle: venv binaries ## What ends a gang and what the operator makes of it, on real kubelets (root, 30 minutes; writes docs/lifecycle-matrix.md)
	PYTHONPATH=tests:trainer_image $(BIN)/python -m e2e.lifecycle.prove

.PHONY: docs-matrix
docs-matrix: venv ## Write docs/trainer-matrix.md from docs/trainer-matrix.json
	PYTHONPATH=tests:trainer_image $(BIN)/python -m trainer.matrix

.PHONY: clean
clean: ## Remove .venv and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
