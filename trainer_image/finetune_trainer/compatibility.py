"""Which settings cannot work together, known before a model is loaded: asked at acceptance and by the trainer.

Every refusal names both fields, why, and the way out. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.config import MethodName, StrategyName, TrainConfig
from finetune_trainer.errors import ConfigError

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose state every strategy and world size can read from a checkpoint."""
_STORAGE_OF_PRECISION = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Combination:
    """The settings that depend on each other."""

    method: MethodName
    strategy: StrategyName
    cpu_offload: bool = False
    nodes: int = 1
    optim: str = "adamw_torch"
    precision: str = "bf16"
    quant_storage: str | None = None


@dataclass(frozen=True)
class Conflict:
    """Two settings that exclude each other."""

    field: str
    value: str
    message: str
    remedy: str


def find_conflict(chosen: Combination) -> Conflict | None:
    """The first conflict, or None."""
    for rule in (_optimizer, _quant_storage, _offload, _full_on_many_nodes):
        conflict = rule(chosen)
        if conflict is not None:
            return conflict
    return None


def check_compatibility(config: TrainConfig) -> None:
    """Ask for the settings of an attempt.

    Raises:
        ConfigError: two of them exclude each other.
    """
    qlora = config.method.qlora
    conflict = find_conflict(
        Combination(
            method=config.method.name,
            strategy=config.distributed.strategy,
            cpu_offload=config.distributed.cpu_offload,
            nodes=config.topology.nodes,
            optim=config.training.optim,
            precision=config.training.precision,
            quant_storage=qlora.quant_storage if qlora else None,
        )
    )
    if conflict is not None:
        raise ConfigError(conflict.field, conflict.value, conflict.message, conflict.remedy)


def _optimizer(chosen: Combination) -> Conflict | None:
    if chosen.optim in OPTIMIZERS:
        return None
    low_bit = "8bit" in chosen.optim or "paged" in chosen.optim
    if low_bit and chosen.strategy != "DDP":
        why = (
            f"spec.training.optim {chosen.optim} cannot be used with spec.distributed.strategy {chosen.strategy}: "
            "the low-bit and paged optimizers of bitsandbytes do not take sharded tensors"
        )
    elif low_bit:
        why = (
            f"spec.training.optim {chosen.optim} cannot be used: its low-bit state would fit no other "
            "spec.distributed.strategy and no other world size, so a checkpoint could not be resumed elsewhere"
        )
    else:
        why = f"spec.training.optim must be one of: {', '.join(OPTIMIZERS)}"
    remedy = "omit spec.training.optim; with lora and qlora the optimizer's state is small"
    if chosen.method == "full":
        remedy = "omit spec.training.optim; to save memory use spec.distributed.strategy FSDP or ZeRO3, with cpuOffload"
    return Conflict("spec.training.optim", chosen.optim, why, remedy)


def _quant_storage(chosen: Combination) -> Conflict | None:
    """FSDP gathers packed weights as if they were of the parameters' dtype: any other is corrupted or refused late."""
    fitting = _STORAGE_OF_PRECISION[chosen.precision]
    if chosen.method != "qlora" or chosen.strategy != "FSDP" or chosen.quant_storage in (None, fitting):
        return None
    return Conflict(
        "spec.method.qlora.quantStorage",
        str(chosen.quant_storage),
        f"spec.method.qlora.quantStorage {chosen.quant_storage} cannot be used with spec.distributed.strategy FSDP and "
        f"spec.training.precision {chosen.precision}: FSDP shards 4-bit weights only in the dtype it computes in",
        f"omit spec.method.qlora.quantStorage, or set it to {fitting}",
    )


def _offload(chosen: Combination) -> Conflict | None:
    if not chosen.cpu_offload or chosen.strategy != "DDP":
        return None
    return Conflict(
        "spec.distributed.cpuOffload",
        "true",
        "spec.distributed.cpuOffload cannot be used with spec.distributed.strategy DDP, which keeps everything on "
        "every GPU",
        "set spec.distributed.strategy to FSDP, ZeRO2 or ZeRO3, or remove cpuOffload",
    )


def _full_on_many_nodes(chosen: Combination) -> Conflict | None:
    """Gradients of all parameters cross the network at every step; only adapters are made for that here."""
    if chosen.method != "full" or chosen.nodes == 1:
        return None
    return Conflict(
        "spec.method.full",
        f"{chosen.nodes} nodes",
        f"spec.method.full cannot be used with spec.placement[0].nodes {chosen.nodes}: full fine-tuning runs on one "
        "node",
        "set spec.placement[0].nodes to 1, or use spec.method.lora or qlora",
    )
