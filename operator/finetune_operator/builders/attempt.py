"""One attempt: the configuration of its gang, the Service it finds itself by, and the Indexed Job that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_operator import constants
from finetune_operator.api.methods import Qlora
from finetune_operator.api.status import FactsStatus
from finetune_operator.builders.credentials import credentials
from finetune_operator.builders.locations import (
    Mounts,
    allowed_uri_prefixes,
    checkpoints_uri,
    mounts_of,
    result_uri,
    source_uri,
)
from finetune_operator.builders.metadata import Owner, child_labels, child_metadata, config_map
from finetune_operator.builders.names import attempt_name, config_name
from finetune_operator.builders.pod import place, pod_template, train_resources
from finetune_operator.core.planner.plan import Plan
from finetune_operator.core.planner.precision import resolve_precision
from finetune_operator.core.snapshot import Snapshot
from finetune_trainer import layout
from finetune_trainer.config import (
    HEARTBEAT_PORT,
    RENDEZVOUS_PORT,
    Checkpointing,
    DataSource,
    Evaluation,
    FullMethod,
    JobIdentity,
    LoraMethod,
    Method,
    ModelSource,
    Output,
    QloraMethod,
    RunIdentity,
    Topology,
    TrainConfig,
    Training,
)


def build_attempt(
    owner: Owner, snapshot: Snapshot, facts: FactsStatus, plan: Plan, number: int, avoided_nodes: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """ConfigMap, headless Service and Indexed Job of attempt ``number``."""
    name = attempt_name(owner.name, number)
    labels = child_labels(owner, stage=constants.STAGE_TRAIN, run=snapshot.digest, attempt=number)
    config = train_config(owner, snapshot, facts, plan, number).to_json()
    config_map_name = config_name(name, config)
    return [
        config_map(owner, config_map_name, labels, {"config.json": config}),
        _service(owner, name, labels),
        _workload(owner, snapshot, plan, name, labels, config_map_name, avoided_nodes),
    ]


def _service(owner: Owner, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Headless; ranks find each other before they are ready, so addresses are published at once."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(owner, name, labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": _gang(labels),
            "ports": [
                {"name": "rendezvous", "port": RENDEZVOUS_PORT},
                {"name": "heartbeat", "port": HEARTBEAT_PORT},
            ],
        },
    }


def _workload(
    owner: Owner,
    snapshot: Snapshot,
    plan: Plan,
    name: str,
    labels: dict[str, str],
    config_map_name: str,
    avoided_nodes: Sequence[str],
) -> dict[str, Any]:
    """The Indexed Job, one pod per node.

    ``backoffLimitPerIndex: 0`` makes one failure final for its index and leaves the peers and their evidence alone;
    with ``backoffLimit: 0`` the Job controller would delete them within seconds.
    """
    template = pod_template(
        snapshot,
        mounts_of(snapshot),
        labels=labels,
        command=["python", "-m", "finetune_trainer", "launch"],
        config_map=config_map_name,
        resources=train_resources(plan.pool, plan.placement.gpus_per_node),
        credentials=credentials(snapshot, "checkpoint", "output"),
        env={"HF_HUB_OFFLINE": "1"},
        shm_size=plan.pool.shm_size,
    )
    template["spec"]["subdomain"] = name
    place(template, plan.pool, apart=_gang(labels), avoided_nodes=avoided_nodes)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(owner, name, labels | _queue_labels(owner)),
        "spec": {
            "completionMode": "Indexed",
            "completions": plan.placement.nodes,
            "parallelism": plan.placement.nodes,
            "backoffLimitPerIndex": 0,
            "podReplacementPolicy": "Failed",
            "template": template,
        },
    }


def _gang(labels: dict[str, str]) -> dict[str, str]:
    return {key: labels[key] for key in (constants.JOB_UID_LABEL, constants.STAGE_LABEL, constants.ATTEMPT_LABEL)}


def _queue_labels(owner: Owner) -> dict[str, str]:
    labels: dict[str, str] = dict(getattr(owner, "labels", {}))
    return {key: value for key, value in labels.items() if key.startswith(constants.QUEUE_LABEL_PREFIX)}


def train_config(owner: Owner, snapshot: Snapshot, facts: FactsStatus, plan: Plan, number: int) -> TrainConfig:
    """What every rank reads."""
    spec, mounts, run = snapshot.spec, mounts_of(snapshot), snapshot.digest
    data = facts.dataset.digest
    name = attempt_name(owner.name, number)
    return TrainConfig(
        job=JobIdentity(namespace=owner.namespace, name=owner.name, uid=owner.uid),
        run=RunIdentity(id=spec.run_id, digest=run),
        attempt=number,
        topology=Topology(
            nodes=plan.placement.nodes,
            processes_per_node=plan.placement.gpus_per_node,
            device=plan.pool.device,
            master_address=f"{name}-0.{name}",
        ),
        model=_model(snapshot, facts, mounts),
        data=_data(snapshot, facts),
        method=_method(snapshot),
        training=_training(snapshot, plan),
        distributed=plan.distributed,
        checkpoint=Checkpointing(
            uri=layout.checkpoint_uri(checkpoints_uri(snapshot, mounts), owner.namespace, owner.name, run, data),
            interval_seconds=spec.checkpoint.interval_seconds,
            keep=spec.checkpoint.keep,
        ),
        output=Output(uri=result_uri(snapshot, mounts, owner, facts)),
        evaluation=Evaluation(prompts=spec.evaluation.prompts, max_new_tokens=spec.evaluation.max_new_tokens),
        allowed_uri_prefixes=allowed_uri_prefixes(snapshot, owner.namespace),
    )


def _model(snapshot: Snapshot, facts: FactsStatus, mounts: Mounts) -> ModelSource:
    return ModelSource(
        uri=facts.model.staged_uri,
        source_uri=source_uri(mounts, "model", snapshot.spec.model),
        revision=facts.model.revision,
        digest=facts.model.digest,
    )


def _data(snapshot: Snapshot, facts: FactsStatus) -> DataSource:
    found = facts.dataset
    return DataSource(
        train_uri=found.train_uri,
        eval_uri=found.eval_uri,
        train_rows=found.train_rows,
        eval_rows=found.eval_rows,
        digest=found.digest,
        max_length=snapshot.spec.dataset.max_length,
        longest_row_tokens=found.longest_row_tokens or None,
        packs_uri=found.packs_uri if found.is_packed else None,
        train_packs=found.train_packs if found.is_packed else None,
    )


def _method(snapshot: Snapshot) -> Method:
    if snapshot.spec.method is None:
        raise ValueError("a snapshot must have a method")
    adapter = snapshot.spec.method.adapter
    if adapter is None:
        return Method(full=FullMethod())
    fields: dict[str, Any] = {
        "r": adapter.r,
        "lora_alpha": adapter.resolved_alpha,
        "lora_dropout": adapter.lora_dropout,
        "target_modules": adapter.target_modules,
    }
    if isinstance(adapter, Qlora):
        quantisation = {
            "quant_type": adapter.quant_type,
            "double_quant": adapter.double_quant,
            "quant_storage": adapter.quant_storage,
        }
        return Method(qlora=QloraMethod(**fields, **quantisation))
    return Method(lora=LoraMethod(**fields))


def _training(snapshot: Snapshot, plan: Plan) -> Training:
    training = snapshot.spec.training
    return Training(
        num_train_epochs=training.resolved_epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        global_batch_size=training.global_batch_size,
        per_device_train_batch_size=plan.batch.per_device,
        gradient_accumulation_steps=plan.batch.accumulation_steps,
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        precision=resolve_precision(training, plan.pool),
        gradient_checkpointing=plan.gradient_checkpointing,
        seed=training.seed,
        deterministic=training.deterministic,
    )
